"""Runs every check that needs a GPU, in one call: `python -m loadtests.gpu.run --out DIR`.

Writes `DIR/checks.json` anew after every check (name, `passed`, seconds, error, rows), and at the end `DIR/gpu.jsonl`,
all rows as one result of the form that `results/` holds. A check that fails stops no other. Exit code 0: all passed;
1: not.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from loadtests.bench.result import Row, new_result
from loadtests.gpu.checks import CHECKS, NEED_PROVIDER, Bench, Settings
from service.inference.ort_runner import CUDA_PROVIDER

SETTINGS = Path(__file__).with_name("gpu.toml")


class OutOfTime(Exception):
    """The time for everything is over."""


def run(out: Path, *, settings: Settings, provider: str = CUDA_PROVIDER, console: Console | None = None) -> bool:
    """Runs the checks on that provider, and writes the files; whether all passed."""
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + settings.minutes * 60
    records: list[dict[str, Any]] = []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, provider, Path(folder))
        for name in CHECKS:
            console.print(f"{name} ...", highlight=False)
            started_s = time.monotonic()
            refused = name in NEED_PROVIDER and not records[0]["passed"]
            error = f"refused: {provider} is not active" if refused else ""
            found: list[Row] = []
            if not refused:
                found, error = _check(name, bench, deadline_s)
            records.append(
                {
                    "name": name,
                    "passed": not error,
                    "took_s": round(time.monotonic() - started_s, 3),
                    "error": error,
                    "rows": [row.model_dump() for row in found],
                }
            )
            rows += found
            console.print(f"  {error or 'passed'}", style="red" if error else "green", highlight=False, markup=False)
            _write(out, provider, records)
    if rows:
        result = new_result(
            "gpu", rows, caveat=_caveat(records), gpu=_device(), command=f"python -m loadtests.gpu.run, {provider}"
        )
        result.print_to(console)
        (out / "gpu.jsonl").write_text(result.json_line() + "\n")
    return all(record["passed"] for record in records)


def _check(name: str, bench: Bench, deadline_s: float) -> tuple[list[Row], str]:
    """Rows of a check, or why there are none."""
    try:
        with _until(deadline_s):
            return CHECKS[name](bench), ""
    except OutOfTime:
        return [], "out of time"
    except Exception as error:  # noqa: BLE001 - whatever one check meets, the others still run
        return [], f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _until(deadline_s: float) -> Iterator[None]:
    """Raises `OutOfTime` in the block at the deadline, or as soon after it as Python gets to run."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise OutOfTime

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, left_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _caveat(records: list[dict[str, Any]]) -> str:
    failed = [record["name"] for record in records if not record["passed"]]
    text = "random weights; one process, systems one after the other"
    return f"{text}; failed: {', '.join(failed)}" if failed else text


def _write(out: Path, provider: str, records: list[dict[str, Any]]) -> None:
    passed = all(record["passed"] for record in records) and len(records) == len(CHECKS)
    report = {"provider": provider, "gpu": _device(), "passed": passed, "checks": records}
    (out / "checks.json").write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.gpu.run", description="Every check that needs a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checks.json and gpu.jsonl")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="another gpu.toml")
    parser.add_argument("--provider", default=CUDA_PROVIDER, help="another execution provider, to try the script")
    options = parser.parse_args()
    sys.exit(0 if run(options.out, settings=Settings.load(options.settings), provider=options.provider) else 1)


if __name__ == "__main__":
    main()
