"""How much longer the slowest runs take than the middle one, beside the same of plain matrix products.

A machine that is shared stalls everything that runs on it. Products that take turns with the runs and last about as
long say how much of a tail is the machine's; what is beyond that is ours. Nothing waits in a queue here.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from loadtests.bench.decode.systems import ONNX_RUNTIME, Exported
from loadtests.bench.decode.timing import Readings, System, interleaved, seconds, sgemm
from loadtests.bench.decode.workload import DecodeWorkload, Measured
from loadtests.bench.result import Row

_SGEMM_SIZE = 512
_NUM_TRIALS = 20
_LOOP = "sgemm loop"


@dataclass(frozen=True, kw_only=True)
class Tail(DecodeWorkload):
    """p50 and p99 of single runs; `num_rounds` counts the runs."""

    def measure(self, console: Console) -> Measured:
        """Rows by system, and each engine's p99 over p50 as a multiple of the products'."""
        torch.set_num_threads(self.num_threads)
        console.print(f"{self.name}: building the systems", highlight=False)
        catalog, generator = self.catalog(), self.generator()
        with tempfile.TemporaryDirectory() as folder:
            exported = Exported(self, generator, catalog, Path(folder), num_loads=1)
        rows: list[Row] = []
        ratios: dict[str, float] = {}
        for shape in self.shapes:
            of_shape = f"beam {shape[0]}, batch {shape[1]}"
            label = f"{self.name}, {of_shape}"
            ours = exported.decoders(*shape)
            systems: dict[str, System] = {**ours, _LOOP: self._loop(ours[ONNX_RUNTIME])}
            tails = {}
            for name, values in self._runs(systems, label, console).items():
                p50_s, p99_s = np.percentile(values, [50, 99]).tolist()
                tails[name] = p99_s / p50_s
                rows.append(Row(workload=label, system=name, value=p50_s * 1000, unit="ms p50"))
                rows.append(Row(workload=label, system=name, value=p99_s * 1000, unit="ms p99"))
                rows.append(Row(workload=label, system=name, value=tails[name], unit="p99 over p50"))
            for name in ours:
                ratios[f"p99 over p50, {name} over the {_LOOP}, {of_shape}"] = tails[name] / tails[_LOOP]
        caveat = (
            f"{self.num_rounds} runs of each system, in turn, {self.num_threads} threads, random weights; after a run "
            "an engine's threads spin for a while, and slow what comes next"
        )
        return Measured(rows=rows, ratios=ratios, caveat=caveat)

    def _loop(self, run: System) -> System:
        """As many products as last about as long as a run, so that both are as likely to be interrupted."""
        product = sgemm(_SGEMM_SIZE)
        times = interleaved(_NUM_TRIALS, {"run": run, "product": product}, window_s=0)
        count = max(1, round(float(np.median(times["run"]) / np.median(times["product"]))))

        def loop() -> None:
            for _ in range(count):
                product()

        return loop

    def _runs(self, systems: dict[str, System], label: str, console: Console) -> Readings:
        """Single runs in turn."""
        readings: Readings = {name: [] for name in systems}
        for system in systems.values():
            system()
        for _ in track(range(self.num_rounds), description=label, console=console, transient=True):
            for name, system in systems.items():
                readings[name].append(seconds(system, 0))
        return readings
