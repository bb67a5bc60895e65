"""`oneslate bench decode`: the decoder's speed, memory and growth. A workload a `.toml`, a measurement a module."""
