"""Trials side by side, each in a process of its own, and the cap on a model's CPU time.

Processes come from a fork server that has imported torch once: a trial starts in milliseconds, with no thread and no
memory of the one before it, and the kernel says what it alone has used.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess

from model_export.trials.trial import ERROR, LOG, Job, Result, run_trial, spent_s
from service.errors import OneSlateError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LOOK_EVERY_S = 0.5
STOP_WITHIN_S = 10.0


class TrialError(OneSlateError, RuntimeError):
    """A trial broke for a reason that is no matter of its setting."""


@dataclass(kw_only=True)
class Crew:
    """Runs jobs, `num_jobs` at a time, in their order."""

    num_jobs: int
    max_cpu_hours: float | None
    """Of all jobs of one model together; None: no cap."""
    on_end: Callable[[Job, Result], None]
    """Told of every job that has ended, those of an earlier run included."""
    _running: dict[int, tuple[Job, ForkServerProcess]] = field(default_factory=dict)
    _ended_s: dict[str, float] = field(default_factory=dict)

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs every job that has no result yet.

        Raises:
            TrialError: a process died without a result; the other running ones are stopped.
        """
        waiting = []
        for job in jobs:
            found = self._known(job)
            if found is None:
                waiting.append(job)
            else:
                self._end(job, found)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.num_jobs:
                    self._start_or_stop(waiting.pop(0))
                self._wait()
        finally:
            for _, process in self._running.values():
                _stop(process)

    def _known(self, job: Job) -> Result | None:
        """A result of an earlier run that stands."""
        found = Result.load(job.folder)
        if found is None or found.status != "stopped":
            return found
        is_more = self.max_cpu_hours is None or self.max_cpu_hours > (found.max_cpu_hours or 0.0)
        return None if is_more else found

    def _start_or_stop(self, job: Job) -> None:
        if self._is_over(job.model):
            self._end(job, self._stopped(job, "not begun"))
            return
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=run_trial, args=(job,), name=job.label, daemon=True)
        with _single_threaded():
            process.start()
        self._running[process.sentinel] = (job, process)

    def _wait(self) -> None:
        """Until something has ended or it is time to look at the meters."""
        ended = connection.wait(list(self._running), timeout=LOOK_EVERY_S)
        for sentinel in ended:
            job, process = self._running.pop(int(str(sentinel)))
            process.join()
            found = Result.load(job.folder)
            if process.exitcode != 0 or found is None:
                log = job.folder / (ERROR if (job.folder / ERROR).exists() else LOG)
                raise TrialError(f"{job.label}: its process ended with code {process.exitcode}; see {log}")
            self._end(job, found)
        for sentinel, (job, process) in list(self._running.items()):
            if self._is_over(job.model):
                _stop(process)
                del self._running[sentinel]
                self._end(job, self._stopped(job, "stopped while it ran"))

    def _is_over(self, model: str) -> bool:
        running_s = sum(spent_s(job.folder) for job, _ in self._running.values() if job.model == model)
        total_s = self._ended_s.get(model, 0.0) + running_s
        return self.max_cpu_hours is not None and total_s > self.max_cpu_hours * 3600

    def _stopped(self, job: Job, how: str) -> Result:
        reason = f"{how}: the model's trials had used their {self.max_cpu_hours:g} CPU-hours"
        job.folder.mkdir(parents=True, exist_ok=True)
        result = Result(status="stopped", cpu_s=spent_s(job.folder), reason=reason, max_cpu_hours=self.max_cpu_hours)
        result.save(job.folder)
        return result

    def _end(self, job: Job, result: Result) -> None:
        self._ended_s[job.model] = self._ended_s.get(job.model, 0.0) + result.cpu_s
        self.on_end(job, result)


def _stop(process: ForkServerProcess) -> None:
    process.terminate()
    process.join(STOP_WITHIN_S)
    if process.is_alive():
        process.kill()
        process.join()


@contextmanager
def _single_threaded() -> Iterator[None]:
    """The fork server, once it is started, hands one thread each to the numerical libraries of its children."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        multiprocessing.get_context("forkserver").set_forkserver_preload([run_trial.__module__])
        forkserver.ensure_running()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
