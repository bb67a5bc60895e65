"""`oneslate bench tokenize`: sids for up to a million items, beside plain residual k-means.

Each system runs in a process of its own on the same embeddings (`tokenize.toml`), one after the other; a run of minutes
is not repeated. Plain residual k-means is what most published semantic IDs are made with: it neither balances codes
nor tells equal items apart, so its error is what these two promises are bought with.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtests.bench.errors import BenchError
from loadtests.bench.result import ROOT, BenchResult, Row, new_result
from loadtests.bench.tokenize_job import SYSTEMS
from loadtests.bench.tokenize_workload import TokenizeWorkload

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run(
    *,
    num_items: int | None = None,
    width: int | None = None,
    record: bool = False,
    console: Console | None = None,
    workload: TokenizeWorkload | None = None,
) -> BenchResult:
    """Measures, prints the table and the JSON line, and appends to `results/tokenize.jsonl` when asked to.

    `num_items` and `width` stand in for those of the workload.
    """
    console = console or Console()
    workload = workload or TokenizeWorkload.load()
    changes: dict[str, Any] = {"num_items": (num_items,)} if num_items else {}
    if width:
        changes["width"] = width
    result = measure(TokenizeWorkload(**{**vars(workload), **changes}), console)
    result.print_to(console)
    if record:
        result.append_to()
    return result


def measure(workload: TokenizeWorkload, console: Console) -> BenchResult:
    """Runs every system on every size.

    Raises:
        BenchError: a run failed, or ours left a collision or an unbalanced level.
    """
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    for num_items in workload.num_items:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "embeddings.npy"
            workload.write_embeddings(path, num_items)
            figures = {}
            for system in SYSTEMS:
                console.print(f"{num_items:,} items: {system}", highlight=False)
                figures[system] = _run_job(path, system, workload)
        ours, plain = figures["balanced"], figures["plain"]
        if ours["collisions"] or ours["size_span"] > 1:
            raise BenchError(f"{num_items} items: {ours['collisions']} collisions, sizes {ours['size_span']} apart")
        sizes = " x ".join(map(str, ours["codebook_sizes"]))
        label = f"{workload.name}, {num_items:,} x {workload.width}, {sizes} codes"
        for system, figure in figures.items():
            rows += _rows(label, system, figure)
        ratios[f"plain_error_{num_items}"] = ours["error"] / plain["error"]
        ratios[f"plain_seconds_{num_items}"] = ours["took_s"] / plain["took_s"]
    caveat = f"one run each, {workload.num_threads} threads; ratios are balanced over plain residual k-means"
    return new_result("tokenize", rows, ratios=ratios, caveat=caveat)


def _run_job(path: Path, system: str, workload: TokenizeWorkload) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.bench.tokenize_job", str(path), system, str(workload.seed)],
        check=False,
        cwd=ROOT,
        env=os.environ | dict.fromkeys(_THREADS, str(workload.num_threads)),
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise BenchError(f"the tokenizer bench of {system} ended with exit code {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _rows(label: str, system: str, figure: dict[str, Any]) -> list[Row]:
    values = [
        (figure["took_s"], "s"),
        (figure["took_cpu_s"], "CPU s"),
        (figure["peak_bytes"] / 2**20, "MiB peak"),
        (figure["collisions"], "collisions"),
        (figure["size_span"], "items between the largest and the smallest code"),
        (figure["error"], "squared error"),
        (figure["neighbours_first_code"], "of near neighbours share the first code"),
    ]
    return [Row(workload=label, system=system, value=float(value), unit=unit) for value, unit in values]
