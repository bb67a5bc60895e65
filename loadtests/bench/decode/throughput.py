"""How fast slates are decoded, beside what one would use otherwise: our graph in each engine, our eager search, and for
one item Hugging Face. All in one process, interleaved, with plain matrix products in the same minutes.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from loadtests.bench.decode.flops import useful_flops
from loadtests.bench.decode.roofline import Roofline, rows_and_ratios
from loadtests.bench.decode.systems import FLOAT32, ONNX_RUNTIME, Decoder, Eager, Exported, HuggingFace
from loadtests.bench.decode.timing import Readings, interleaved, medians, sgemm_rates, sgemm_systems
from loadtests.bench.decode.workload import DecodeWorkload, Measured
from loadtests.bench.errors import BenchError
from loadtests.bench.result import Row

_NUM_TIES, _SHARE_OF_TIES = 2, 0.2
"""Random weights leave near ties, which float32 may decide either way; more than so many would be an error."""


@dataclass(frozen=True, kw_only=True)
class Throughput(DecodeWorkload):
    """Slates a second, at each shape."""

    has_hugging_face: bool
    """Whether Hugging Face `generate` runs beside ours; its prefix callback knows one item and no exclusions."""
    roofline_shapes: tuple[tuple[int, int], ...]
    """Shapes at which ONNX Runtime's run is also compared with its own operators, each alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_hugging_face and (self.slate_size > 1 or self.num_excluded):
            raise ValueError(f"{self.name}: Hugging Face's callback knows one item and no exclusions")

    def measure(self, console: Console) -> Measured:
        """Rows of every shape, and how many times faster each of ours is than each rival, and than ONNX Runtime.

        Raises:
            BenchError: a float32 graph and the eager model disagree on more than a near tie.
        """
        torch.set_num_threads(self.num_threads)
        console.print(f"{self.name}: building the systems", highlight=False)
        catalog, generator = self.catalog(), self.generator()
        with tempfile.TemporaryDirectory() as folder:
            exported = Exported(self, generator, catalog, Path(folder), num_loads=self.num_rounds)
            rows, ratios = self._rooflines(exported, console)
        rows = self._export_rows(exported) + rows
        eager = Eager(self, generator, catalog)
        hugging_face = HuggingFace(self, catalog) if self.has_hugging_face else None
        readings: dict[tuple[int, int], Readings] = {}
        agreements: dict[tuple[int, int], dict[str, float]] = {}
        for shape in self.shapes:
            console.print(f"{self.name}, {_of(shape)}", highlight=False)
            ours, rivals = exported.decoders(*shape), {"eager": eager.decoder(*shape)}
            if hugging_face:
                rivals["hf_constrained"] = hugging_face.decoder(*shape)
            agreements[shape] = agreement(ours, rivals["eager"])
            readings[shape] = interleaved(self.num_rounds, {**ours, **rivals, **sgemm_systems()}, console)
        rates = [rate for one in readings.values() for values in sgemm_rates(one).values() for rate in values]
        for shape in self.shapes:
            rows += self._shape_rows(shape, readings[shape], agreements[shape], max(rates))
            ratios |= _ratios(shape, medians(readings[shape]), list(agreements[shape]))
        return Measured(rows=rows, ratios=ratios, caveat=self._caveat())

    def _caveat(self) -> str:
        text = f"{self.num_rounds} interleaved rounds, settled, medians, {self.num_threads} threads, random weights"
        if self.shapes:
            text += "; the best sgemm rate is that of any round, size and shape of the run, ours are medians"
        return f"{text}; one export; a load finds the file in the system's cache"

    def _rooflines(self, exported: Exported, console: Console) -> tuple[list[Row], dict[str, float]]:
        rows: list[Row] = []
        ratios: dict[str, float] = {}
        for shape in self.roofline_shapes:
            console.print(f"{self.name}, {_of(shape)}: operators alone", highlight=False)
            roofline = Roofline(exported.graph.path, exported.feeds(*shape), num_threads=self.num_threads)
            more_rows, shares = rows_and_ratios(f"{self.name}, {_of(shape)}, operators", roofline, console)
            rows += more_rows
            ratios |= {f"{name}, {_of(shape)}": share for name, share in shares.items()}
        return rows, ratios

    def _export_rows(self, exported: Exported) -> list[Row]:
        label, graph = f"{self.name}, export", exported.graph
        rows = [
            Row(workload=label, system="graph", value=graph.export_s, unit="s to export this graph alone"),
            Row(workload=label, system="graph", value=graph.num_nodes, unit="nodes"),
        ]
        loads = exported.load_s.items()
        return rows + [Row(workload=label, system=name, value=value, unit="s to load") for name, value in loads]

    def _shape_rows(
        self, shape: tuple[int, int], readings: Readings, agreements: dict[str, float], best_rate: float
    ) -> list[Row]:
        (beam_width, batch_size), label = shape, f"{self.name}, {_of(shape)}"
        flops = useful_flops(
            self.model, self.spec, batch_size=batch_size, beam_width=beam_width, history_length=self.history_length
        )
        rate = max(medians(sgemm_rates(readings)).values())
        rows = [
            Row(workload=label, system="sgemm", value=rate / 1e9, unit="GFLOP/s"),
            Row(workload=label, system="sgemm", value=best_rate / 1e9, unit="GFLOP/s at best"),
            Row(workload=label, system="network", value=flops / 1e9, unit="useful GFLOP a batch"),
        ]
        for name, seconds in medians({n: v for n, v in readings.items() if n not in sgemm_rates(readings)}).items():
            rows.append(Row(workload=label, system=name, value=seconds * 1000, unit="ms a batch"))
            rows.append(Row(workload=label, system=name, value=batch_size / seconds, unit="slates/s"))
            if name in agreements:
                share = flops / seconds
                rows.append(Row(workload=label, system=name, value=share / rate, unit="of sgemm, useful FLOPs"))
                rows.append(Row(workload=label, system=name, value=share / best_rate, unit="of sgemm at best"))
                rows.append(Row(workload=label, system=name, value=agreements[name], unit="of best slates as eager"))
        return rows


def _of(shape: tuple[int, int]) -> str:
    return f"beam {shape[0]}, batch {shape[1]}"


def _ratios(shape: tuple[int, int], times_s: dict[str, float], ours: list[str]) -> dict[str, float]:
    """How many times the throughput; our other engines are compared with ONNX Runtime, too."""
    rivals = [name for name in times_s if name not in ours and not name.startswith("sgemm")]
    pairs = [(name, rival) for rival in rivals for name in ours]
    pairs += [(name, ONNX_RUNTIME) for name in ours if name != ONNX_RUNTIME]
    return {f"{name} over {rival}, {_of(shape)}": times_s[rival] / times_s[name] for name, rival in pairs}


def agreement(ours: dict[str, Decoder], eager: Decoder) -> dict[str, float]:
    """Share of the best slates that are the eager model's, by system. `BenchError` where float32 has too few."""
    expected = eager()
    shares = {}
    for name, decoder in ours.items():
        num_others = int((decoder() != expected).any(1).sum())
        shares[name] = 1 - num_others / len(expected)
        if name in FLOAT32 and num_others > max(_NUM_TIES, _SHARE_OF_TIES * len(expected)):
            raise BenchError(f"{name} and the eager model agree on only {shares[name]:.0%} of the best slates")
    return shares
