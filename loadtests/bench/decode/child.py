"""Measurements in a process of its own, whose memory is therefore its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from loadtests.bench.errors import BenchError
from loadtests.bench.result import ROOT

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_child(module: str, job: dict[str, Any], *, num_threads: int) -> dict[str, float]:
    """Runs the module with the path of the job's JSON file as its argument; what it prints last is JSON.

    Its standard error, progress included, goes to ours.

    Raises:
        BenchError: it ended with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", module, str(path)],
            check=False,
            cwd=ROOT,
            env=os.environ | dict.fromkeys(_THREADS, str(num_threads)),
            stdout=subprocess.PIPE,
            text=True,
        )
    if done.returncode:
        raise BenchError(f"{module} ended with exit code {done.returncode}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def resident_bytes() -> dict[str, int]:
    """This process's resident memory, `now` and at its `peak`.

    Not `ru_maxrss`, which a process that was started by vfork inherits from its parent.

    Raises:
        BenchError: no /proc here.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        raise BenchError("memory is read from /proc, which this system does not have")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return {name: int(fields[key].split()[0]) * 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}
