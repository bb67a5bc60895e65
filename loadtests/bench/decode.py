"""`oneslate bench decode`: how fast slates are decoded, beside what one would use otherwise.

All systems run in one process, interleaved, on the workload of `decode.toml`; medians of its rounds are reported, and
the rate of plain matrix products in the same minutes.
"""

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from loadtests.bench.decode_systems import Eager, Graph, HuggingFace, System
from loadtests.bench.decode_workload import DecodeWorkload
from loadtests.bench.errors import BenchError
from loadtests.bench.result import BenchResult, Row, new_result

_SGEMM = 2048
_MIN_WINDOW_S = 0.25
"""A fast system runs as often in a round as this takes, so that one reading spans many scheduler ticks."""


def run(*, record: bool = False, console: Console | None = None) -> BenchResult:
    """Measures, prints the table and the JSON line, and appends to `results/decode.jsonl` when asked to."""
    console = console or Console()
    result = measure(DecodeWorkload.load(), console)
    result.print_to(console)
    if record:
        result.append_to()
    return result


def measure(workload: DecodeWorkload, console: Console) -> BenchResult:
    """Builds the systems and times them.

    Raises:
        BenchError: the graph and the eager model disagree on more than a near tie.
    """
    torch.set_num_threads(workload.num_threads)
    console.print("building the systems", highlight=False)
    catalog, generator = workload.catalog(), workload.generator()
    started_s = time.perf_counter()
    graph = Graph(workload, generator, catalog)
    export_s = time.perf_counter() - started_s
    eager, hugging_face = Eager(workload, generator, catalog), HuggingFace(workload, catalog)
    rows = [
        Row(workload="export", system="graph", value=export_s, unit="s to export and load"),
        Row(workload="export", system="graph", value=graph.num_nodes, unit="nodes"),
    ]
    ratios: dict[str, float] = {}
    for batch_size in workload.batch_sizes:
        history = workload.history(catalog, batch_size)
        systems = {
            "graph": graph.system(history),
            "eager": eager.system(history),
            "hf_constrained": hugging_face.system(history),
        }
        flops = _flops(systems["eager"])
        _check(systems)
        medians = _interleaved(workload.num_rounds, {**systems, "sgemm": _sgemm()}, console)
        label = f"{workload.name}, batch {batch_size}"
        rate = 2 * _SGEMM**3 / medians["sgemm"]
        rows.append(Row(workload=label, system="sgemm", value=rate / 1e9, unit="GFLOP/s"))
        for name in systems:
            rows.append(Row(workload=label, system=name, value=medians[name] * 1000, unit="ms a batch"))
            rows.append(Row(workload=label, system=name, value=batch_size / medians[name], unit="slates/s"))
        rows.append(Row(workload=label, system="graph", value=flops / medians["graph"] / rate, unit="share of sgemm"))
        for rival in ("hf_constrained", "eager"):
            ratios[f"{rival}_batch_{batch_size}"] = medians[rival] / medians["graph"]
    caveat = f"medians of {workload.num_rounds} interleaved rounds, {workload.num_threads} threads, random weights"
    return new_result("decode", rows, ratios=ratios, caveat=caveat)


def _interleaved(num_rounds: int, systems: dict[str, System], console: Console) -> dict[str, float]:
    """Median seconds of one call of each system."""
    times: dict[str, list[float]] = {name: [] for name in systems}
    for system in systems.values():
        system()
    for number in range(num_rounds):
        for name, system in systems.items():
            times[name].append(_seconds(system))
        last = ", ".join(f"{name} {values[-1] * 1000:.1f} ms" for name, values in times.items())
        console.print(f"  round {number + 1}: {last}", highlight=False)
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(call: Callable[[], object]) -> float:
    """Mean seconds of a call, over as many calls as fill the window."""
    started_s = time.perf_counter()
    num_calls = 0
    while True:
        call()
        num_calls += 1
        elapsed_s = time.perf_counter() - started_s
        if elapsed_s >= _MIN_WINDOW_S:
            return elapsed_s / num_calls


def _sgemm() -> System:
    left, right = torch.randn(_SGEMM, _SGEMM), torch.randn(_SGEMM, _SGEMM)
    return lambda: left @ right


def _flops(system: System) -> float:
    """Useful floating-point operations of one call: the matrix products of the eager search."""
    with FlopCounterMode(display=False) as counter:
        system()
    return float(counter.get_total_flops())


def _check(systems: dict[str, System]) -> None:
    same = (systems["graph"]() == systems["eager"]()).all(1).float().mean()
    # Random weights leave near ties, which float32 may decide either way; more than a few would be an error.
    if same < 0.8:
        raise BenchError(f"graph and eager model agree on only {same:.0%} of the best slates: nothing to compare")
