"""What the process that decodes holds: weights, catalog and one batch; and whether it grows over thousands of runs.

The process is ONNX Runtime and numpy alone, as in the service, without what surrounds them there.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from loadtests.bench.decode.child import run_child
from loadtests.bench.decode.graphs import export_graph, feeds_of
from loadtests.bench.decode.synthetic import num_bytes
from loadtests.bench.decode.workload import DecodeWorkload, Measured
from loadtests.bench.result import Row

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Memory(DecodeWorkload):
    """Resident bytes of one process; a round is one run."""

    warm_up_runs: int
    """Of each history length, before the growth is counted: the engine's arena takes what it needs."""
    history_lengths: tuple[int, ...]
    """Padded lengths that the runs go through in turn, as the service's buckets do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warm_up_runs < 1:
            raise ValueError(f"{self.name}: warm_up_runs must be at least 1, not {self.warm_up_runs}")
        if not self.history_lengths or not all(1 <= length <= self.history_length for length in self.history_lengths):
            raise ValueError(f"{self.name}: history_lengths must lie in 1..{self.history_length}")

    def measure(self, console: Console) -> Measured:
        """Rows by shape; what loading costs over the bytes of the weights, and the growth over all that is held.

        Raises:
            BenchError: the process failed.
        """
        catalog = self.catalog()
        rows: list[Row] = []
        ratios: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            console.print(f"{self.name}: exporting", highlight=False)
            graph = export_graph(self.generator(), catalog.trie.max_branch, Path(folder))
            weights_bytes = sum(file.stat().st_size for file in Path(folder).iterdir())
            for beam_width, batch_size in self.shapes:
                feeds: dict[str, Any] = feeds_of(self, catalog, beam_width, batch_size)
                np.savez(Path(folder) / "feeds.npz", **feeds)
                job = {
                    "graph": str(graph.path),
                    "feeds": str(Path(folder) / "feeds.npz"),
                    "history_lengths": self.history_lengths,
                    "warm_up_runs": self.warm_up_runs,
                    "num_runs": self.num_rounds,
                    "num_threads": self.num_threads,
                }
                shape = f"beam {beam_width}, batch {batch_size}"
                label = f"{self.name}, {shape}"
                console.print(label, highlight=False)
                figures = run_child("loadtests.bench.decode.memory_job", job, num_threads=self.num_threads)
                figures |= {"weights": weights_bytes, "catalog": num_bytes(catalog)}
                rows += _rows(label, figures, self.num_rounds)
                loaded, held = figures["loaded"] - figures["start"], figures["warm"] - figures["start"]
                ratios[f"memory to load over the weights' file, {shape}"] = loaded / weights_bytes
                ratios[f"growth over {self.num_rounds:,} runs over what is held, {shape}"] = (
                    figures["end"] - figures["warm"]
                ) / held
        caveat = (
            f"resident memory of one process, {self.num_threads} threads; runs go through histories padded to "
            f"{', '.join(map(str, self.history_lengths))} events; before the growth is counted each was run "
            f"{self.warm_up_runs} times; random weights and sids"
        )
        return Measured(rows=rows, ratios=ratios, caveat=caveat)


def _rows(label: str, figures: dict[str, float], num_runs: int) -> list[Row]:
    values = [
        ("weights", figures["weights"], "MiB on disk"),
        ("catalog", figures["catalog"], "MiB of arrays"),
        ("process with its libraries", figures["start"], "MiB"),
        ("weights loaded", figures["loaded"] - figures["start"], "MiB more"),
        ("catalog loaded", figures["with_catalog"] - figures["loaded"], "MiB more"),
        ("runs", figures["warm"] - figures["with_catalog"], "MiB more"),
        ("process", figures["warm"], "MiB before the runs"),
        ("process", figures["end"], f"MiB after {num_runs:,} runs"),
        ("process", figures["end"] - figures["warm"], "MiB of growth"),
        ("process", figures["peak"], "MiB at its peak"),
    ]
    return [Row(workload=label, system=system, value=value / _MIB, unit=unit) for system, value, unit in values]
