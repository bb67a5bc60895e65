"""Everything that can only be known on a GPU, in one call: `python -m loadtests.gpu.run --out DIR`."""
