"""Loads a graph and runs it many times: `python -m` this module with a job's file; see `memory`.

The last line of output is JSON: resident bytes after each stage. Progress goes to standard error.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.progress import track

from loadtests.bench.decode.child import resident_bytes
from service.inference.ort_runner import CPU_PROVIDER, session_options

_PER_EVENT = ("history_codes", "history_actions", "history_ages", "history_values")


def measure(job: dict[str, Any]) -> dict[str, float]:
    """Bytes at the start, with the graph, with the catalog and the batch, after the warm-up and at the end."""
    figures: dict[str, float] = {"start": resident_bytes()["now"]}
    options = session_options(CPU_PROVIDER, job["num_threads"])
    ort_session = ort.InferenceSession(job["graph"], options, providers=[CPU_PROVIDER])
    figures["loaded"] = resident_bytes()["now"]
    with np.load(job["feeds"]) as arrays:
        feeds = {name: arrays[name] for name in arrays.files}
    batches = [_cut(feeds, length) for length in job["history_lengths"]]
    figures["with_catalog"] = resident_bytes()["now"]
    for _ in range(job["warm_up_runs"]):
        for batch in batches:
            ort_session.run(None, batch)
    figures["warm"] = resident_bytes()["now"]
    runs = itertools.islice(itertools.cycle(batches), job["num_runs"])
    for batch in track(runs, "runs", total=job["num_runs"], console=Console(stderr=True), transient=True):
        ort_session.run(None, batch)
    figures["end"], figures["peak"] = resident_bytes()["now"], resident_bytes()["peak"]
    return figures


def _cut(feeds: dict[str, Any], length: int) -> dict[str, Any]:
    """The newest events alone."""
    cut = {name: np.ascontiguousarray(feeds[name][:, -length:]) for name in _PER_EVENT}
    return {**feeds, **cut, "history_lengths": np.full_like(feeds["history_lengths"], length)}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))))
