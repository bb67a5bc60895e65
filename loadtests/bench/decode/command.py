"""The command: measures a workload, prints, and records."""

from pathlib import Path
from typing import Final

from rich.console import Console

from loadtests.bench.decode.catalog import CatalogGrowth
from loadtests.bench.decode.constraint import Constraint
from loadtests.bench.decode.memory import Memory
from loadtests.bench.decode.tail import Tail
from loadtests.bench.decode.throughput import Throughput
from loadtests.bench.decode.trie import TrieBuild
from loadtests.bench.decode.workload import Workload
from loadtests.bench.result import BenchResult, new_result

FOLDER = Path(__file__).parent
WORKLOADS: Final[dict[str, type[Workload]]] = {
    "item": Throughput,
    "slate": Throughput,
    "experts": Throughput,
    "export": Throughput,
    "tail": Tail,
    "constraint": Constraint,
    "catalog": CatalogGrowth,
    "catalog_wide": CatalogGrowth,
    "trie": TrieBuild,
    "memory": Memory,
}
"""Each with a file of its name."""


def run(*, workload: str = "item", record: bool = False, console: Console | None = None) -> BenchResult:
    """Measures one of `WORKLOADS`, prints table and JSON line, and appends to `results/decode.jsonl` if asked to.

    Raises:
        ValueError: no such workload.
        BenchError: the figures would mean nothing.
    """
    console = console or Console()
    if workload not in WORKLOADS:
        raise ValueError(f"unknown workload {workload!r}: there are {', '.join(WORKLOADS)}")
    measured = load(workload).measure(console)
    ratios = {f"{workload}, {name}": value for name, value in measured.ratios.items()}
    result = new_result("decode", measured.rows, ratios=ratios, caveat=measured.caveat)
    result.print_to(console)
    if record:
        result.append_to()
    return result


def load(name: str) -> Workload:
    """The committed workload of that name."""
    return WORKLOADS[name].load(FOLDER / f"{name}.toml")
