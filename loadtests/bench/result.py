"""One measured run: what every benchmark and training report ends in.

A run is one JSON line. `results/<bench>.jsonl` holds the recorded ones, oldest first, and `RESULTS.md` is rendered from
them (`loadtests.bench.results_page`).
"""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS_DIR = ROOT / "results"

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Line = Annotated[str, Field(min_length=1, pattern=r"^[^\r\n]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hardware(_Strict):
    """The machine of a run."""

    cpu: str
    cores: int = Field(ge=1)
    """Cores that the process may use, not those the machine has."""
    memory_gib: _Finite
    gpu: str = ""

    def __str__(self) -> str:
        text = f"{self.cpu}, {self.cores} cores, {self.memory_gib:g} GiB"
        return f"{text}, {self.gpu}" if self.gpu else text


class Row(_Strict):
    """One figure."""

    workload: _Line
    system: _Line
    value: _Finite
    unit: str


class BenchResult(_Strict):
    """One run of one benchmark. `ratios` holds what may be compared between machines: both sides of one run."""

    bench: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    date: str
    """RFC 3339, UTC, to the second."""
    commit: str
    """Short hash; ends in `+` when the working tree differed from it."""
    hardware: Hardware
    command: _Line
    rows: tuple[Row, ...] = Field(min_length=1)
    ratios: dict[str, _Finite] = Field(default_factory=dict)
    caveat: str = ""

    def json_line(self) -> str:
        """The run as one line of JSON, without the line end."""
        return self.model_dump_json()

    def append_to(self, folder: Path = RESULTS_DIR) -> Path:
        """Appends the run to `<folder>/<bench>.jsonl`, which it creates where missing; gives back the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.bench}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(self.json_line() + "\n")
        return path

    def print_to(self, console: Console) -> None:
        """Prints the table and the ratios, and as the last line of output the JSON line, never wrapped."""
        table = Table(title=f"{self.bench} ({self.commit}, {self.hardware})")
        for title in ("workload", "system"):
            table.add_column(title)
        table.add_column("value", justify="right")
        table.add_column("unit")
        for row in self.rows:
            table.add_row(row.workload, row.system, format_value(row.value), row.unit)
        console.print(table)
        for name, ratio in self.ratios.items():
            console.print(f"{name}: {format_value(ratio)}")
        if self.caveat:
            console.print(self.caveat)
        console.file.write(self.json_line() + "\n")


def new_result(
    bench: str,
    rows: list[Row],
    *,
    ratios: dict[str, float] | None = None,
    caveat: str = "",
    command: str | None = None,
    gpu: str = "",
) -> BenchResult:
    """A result of this moment, machine, commit and command line (`command` where another one says more)."""
    return BenchResult(
        bench=bench,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        commit=git_commit(),
        hardware=detect_hardware(gpu=gpu),
        command=command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        rows=tuple(rows),
        ratios=ratios or {},
        caveat=caveat,
    )


def detect_hardware(*, gpu: str = "") -> Hardware:
    """The machine that this process runs on; `gpu` is told by whoever used one."""
    return Hardware(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=gpu,
    )


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_commit(root: Path = ROOT) -> str:
    """Short hash of HEAD, with `+` if tracked files other than the results differ; `unknown` outside a checkout."""
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!RESULTS.md")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+" if changed else head


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def read_results(path: Path) -> list[BenchResult]:
    """Every run of one JSON Lines file, in its order.

    Raises:
        ValueError: a line is not a result, named by file and line; or its `bench` is not the file's name.
    """
    results = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            result = BenchResult.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "line"
            raise ValueError(f"{path}:{number}: {field}: {first['msg']}") from error
        if result.bench != path.stem:
            raise ValueError(f"{path}:{number}: bench {result.bench!r} does not belong into this file")
        results.append(result)
    return results


def format_value(value: float) -> str:
    """Four significant digits, thousands separated; whole numbers from 1000 up without decimals."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
