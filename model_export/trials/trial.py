"""One trial in one folder: fit a model, record its lists, keep the result. Run in a process of its own."""

import functools
import json
import multiprocessing
import os
import threading
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from model_export.data.prepared import PreparedData
from model_export.data.simulator import Truth
from model_export.evaluate.config import EvaluateConfig
from model_export.evaluate.recorded import RecordedLists
from model_export.evaluate.samples import draw_samples
from model_export.progress import Progress
from model_export.reward.scorer import SlateScorer
from model_export.trials.kinds import FitTask
from model_export.trials.plan import Tables
from model_export.trials.registry import kind_of
from model_export.trials.shared import Shared, locked

RESULT, LISTS, METER, LOG, ERROR = "result.json", "lists.npz", "cpu.json", "log.txt", "error.txt"
METER_EVERY_S = 1.0
Status = Literal["done", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a trial's process is told."""

    folder: Path
    model: str
    place: int
    """Of the setting in the model's grid."""
    kind: str
    recipe: str
    tables: Tables
    seed: int
    num_epochs: int | None
    prepared: Path
    """The prepared data set to fit on."""
    split: str
    """Whose examples get lists."""
    evaluate: EvaluateConfig
    shared: Path
    truth: Path | None = None
    """The simulator's truth, where the data come from one: for curves alone."""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.model}, setting {self.place}, seed {self.seed}"


class Result(BaseModel):
    """The content of `result.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    cpu_s: float
    """Process time, that of interrupted attempts included."""
    num_parameters: int = 0
    num_epochs: int | None = None
    reason: str = ""
    """Why it failed or was stopped."""
    max_cpu_hours: float | None = None
    """The cap under which it was stopped: under a higher one it may go on."""

    @classmethod
    def load(cls, folder: Path) -> "Result | None":
        """None where the trial has not ended."""
        try:
            return cls.model_validate_json((folder / RESULT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except pydantic.ValidationError as error:
            raise ValueError(f"{folder / RESULT}: not a result of a trial: {error.errors()[0]['msg']}") from error

    def save(self, folder: Path) -> None:
        """Writes it in one rename."""
        write_whole(folder / RESULT, self.model_dump_json(indent=2) + "\n")


def run_trial(job: Job) -> None:
    """Runs a trial to its result; a trial that has one is left as it is.

    A setting that cannot be trained (`ValueError`) is a result, too. Anything else is our mistake: its traceback goes
    to `error.txt`, and the process ends with code 1.
    """
    torch.set_num_threads(1)
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder / ".lock"), CpuMeter(job.folder) as meter, (job.folder / LOG).open("a") as log:
        found = Result.load(job.folder)
        if found is not None and found.status == "done":
            return
        try:
            result = _fit_and_record(job, Progress(Console(file=log, width=160)))
        except ValueError as error:
            result = Result(status="failed", cpu_s=0.0, reason=" ".join(str(error).split()))
        except Exception:
            write_whole(job.folder / ERROR, traceback.format_exc())
            raise
        result.model_copy(update={"cpu_s": meter.total_s()}).save(job.folder)


def _fit_and_record(job: Job, progress: Progress) -> Result:
    prepared = PreparedData.load(job.prepared)
    task = FitTask(
        prepared=prepared,
        recipe_name=job.recipe,
        tables=job.tables,
        seed=job.seed,
        num_epochs=job.num_epochs,
        out=job.folder,
        shared=Shared(job.shared),
        progress=progress,
        truth=None if job.truth is None else functools.partial(_true_scorer, job.truth, prepared),
    )
    fitted = kind_of(job.kind).fit(task)
    samples = draw_samples(replace(job.evaluate, splits=(job.split,)), prepared, job.split)
    lists = RecordedLists.record(
        fitted.recommender, samples, num_ranked=max(job.evaluate.ks), slate_size=prepared.slate_size
    )
    lists.save(job.folder / LISTS)
    return Result(status="done", cpu_s=0.0, num_parameters=fitted.num_parameters, num_epochs=fitted.num_epochs)


def _true_scorer(folder: Path, prepared: PreparedData) -> SlateScorer:
    return Truth.load(folder).scorer(prepared)


class CpuMeter:
    """Keeps the process time of a trial on disk, so that an attempt that is killed still counts.

    It also ends the process when its parent is gone: nobody would read the result, and a later run would wait for it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / METER
        self._earlier_s = spent_s(folder)
        self._started_s = time.process_time()
        self._parent = multiprocessing.parent_process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "CpuMeter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._write()

    def total_s(self) -> float:
        """Seconds so far, earlier attempts included."""
        return self._earlier_s + time.process_time() - self._started_s

    def _watch(self) -> None:
        while not self._stop.wait(METER_EVERY_S):
            self._write()
            if self._parent is not None and not self._parent.is_alive():
                os._exit(1)

    def _write(self) -> None:
        write_whole(self._file, json.dumps({"cpu_s": self.total_s()}))


def spent_s(folder: Path) -> float:
    """Process time of a trial so far."""
    try:
        values: dict[str, Any] = json.loads((folder / METER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0.0
    return float(values["cpu_s"])


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one rename."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
