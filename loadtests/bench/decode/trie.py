"""How long it takes to build the trie of millions of items, and how much memory, each size in a process of its own."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from loadtests.bench.decode.child import run_child
from loadtests.bench.decode.synthetic import planted_sids
from loadtests.bench.decode.workload import Measured, Workload
from loadtests.bench.result import Row

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class TrieBuild(Workload):
    """Seconds and bytes by size."""

    num_items: tuple[int, ...]
    codebook_size: int
    num_levels: int
    seed: int

    def measure(self, console: Console) -> Measured:
        """Rows by size.

        Raises:
            ValueError: a size that no trie of these codebooks has.
            BenchError: a build failed.
        """
        rows: list[Row] = []
        for size in self.num_items:
            console.print(f"{self.name}: {size:,} items", highlight=False)
            label = f"{self.name}, {size:,} items"
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "sids.npy"
                np.save(path, planted_sids(size, self.codebook_size, self.num_levels, self.seed))
                job = {"sids": str(path), "num_rounds": self.num_rounds}
                figures = run_child("loadtests.bench.decode.trie_job", job, num_threads=self.num_threads)
            rows += [
                Row(workload=label, system="sort", value=figures["sort_s"], unit="s"),
                Row(workload=label, system="trie", value=figures["build_s"], unit="s"),
                Row(workload=label, system="sort and trie", value=figures["sort_s"] + figures["build_s"], unit="s"),
                Row(workload=label, system="sids", value=figures["sids_bytes"] / _MIB, unit="MiB"),
                Row(workload=label, system="trie", value=figures["trie_bytes"] / _MIB, unit="MiB"),
                Row(workload=label, system="process before", value=figures["before_bytes"] / _MIB, unit="MiB peak"),
                Row(workload=label, system="process", value=figures["peak_bytes"] / _MIB, unit="MiB peak"),
            ]
        caveat = (
            f"medians of {self.num_rounds} builds from sids in random order, one process a size; the process before "
            "holds the unsorted sids; item ids, titles and tags are not in it"
        )
        return Measured(rows=rows, caveat=caveat)
