"""The micro-batcher: groups what waits, runs it in one worker thread, and gives every request its own answer.

While one run is in flight arrivals queue up; the next run takes the oldest and all others for the same graph, up to the
largest batch. An idle worker starts at once unless `max_wait_s` lets it wait for company.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from service.bundle.manifest import Purpose
from service.catalog import CatalogSnapshot, TagFilter
from service.errors import DeadlineExceeded, Overloaded, RunnerError
from service.inference.features import RequestInputs, build_batch, most_filters
from service.inference.runner import Batch, Beams, Runner
from service.metrics import Metrics

_log = logging.getLogger(__name__)
_RATE_SMOOTHING = 0.2
"""Weight of the newest batch in the drain rate."""
_UNKNOWN_RETRY_AFTER_S = 1.0
_MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What the runner decoded for one request, and against which catalog."""

    snapshot: CatalogSnapshot
    beam_width: int
    beams: Beams
    queue_s: float
    features_s: float
    """Of the whole batch."""
    inference_s: float
    """Of the whole batch."""


@dataclass(slots=True, eq=False)
class _Entry:
    inputs: RequestInputs
    deadline_s: float
    future: asyncio.Future[Answer]
    submitted_s: float = field(default_factory=time.monotonic)

    def expire(self) -> None:
        self.settle(DeadlineExceeded("the request ran out of time"))

    def settle(self, outcome: Answer | Exception) -> None:
        if self.future.done():  # late or cancelled meanwhile
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class Batcher:
    """Made on a running event loop; every method is called on that loop."""

    def __init__(
        self,
        runner: Runner,
        catalog: Callable[[], CatalogSnapshot],
        metrics: Metrics,
        *,
        max_batch_size: int = 32,
        max_wait_s: float = 0.0,
        queue_limit: int = 256,
    ) -> None:
        """Starts the worker.

        Args:
            runner: Runs in the worker thread alone; loads its further graphs in others.
            catalog: Gives the snapshot of a batch; called once per batch.
            metrics: Batch sizes and queue depth go there.
            max_batch_size: Most requests of one run.
            max_wait_s: How long an idle worker waits for a batch to fill; 0: not at all.
            queue_limit: Most requests that wait; further ones are not admitted.
        """
        self._runner = runner
        self._catalog = catalog
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_wait_s
        self._queue_limit = queue_limit
        self._waiting: dict[_Entry, None] = {}
        self._in_flight: list[_Entry] = []
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._drained_per_s: float | None = None
        self._loading: dict[Purpose, asyncio.Future[None]] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="oneslate-runner")
        self._worker = asyncio.create_task(self._work(), name="batcher")
        self._worker.add_done_callback(self._bury)

    @property
    def alive(self) -> bool:
        """False when the worker is gone: nothing will be answered any more."""
        return not self._worker.done()

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a run."""
        return len(self._waiting)

    async def submit(self, inputs: RequestInputs, deadline_s: float) -> Answer:
        """Waits for the request's turn and its answer.

        Args:
            inputs: What the request brings.
            deadline_s: On the clock of `time.monotonic`.

        Raises:
            Overloaded: the queue is full.
            DeadlineExceeded: the time is over; what waits is not computed any more.
            RunnerError: the run of this batch failed, or the worker is gone.
            Exception: whatever this request's own inputs made the feature building raise.
        """
        if inputs.purpose != "generator":
            await self._load(inputs.purpose, deadline_s)
        if self._closing or not self.alive:
            raise RunnerError("the batcher does not run")
        if len(self._waiting) >= self._queue_limit:
            raise Overloaded("too many requests wait already", retry_after_s=self._retry_after_s())
        loop = asyncio.get_running_loop()
        entry = _Entry(inputs, deadline_s, loop.create_future())
        timer = loop.call_later(max(0.0, deadline_s - entry.submitted_s), entry.expire)
        self._waiting[entry] = None
        self._arrived.set()
        self._idle.clear()
        if len(self._waiting) >= self._max_batch_size:
            self._full.set()
        try:
            return await entry.future
        finally:
            timer.cancel()
            self._waiting.pop(entry, None)

    async def close(self, grace_s: float = 5.0) -> None:
        """Admits no more, lets what waits finish for at most `grace_s`, fails the rest, and ends the worker."""
        self._closing = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("%d requests did not finish in %g s", len(self._waiting) + len(self._in_flight), grace_s)
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _load(self, purpose: Purpose, deadline_s: float) -> None:
        """Waits until the graph is loaded; who needs another one does not wait, and who is late does not end it."""
        if purpose not in self._loading:
            self._loading[purpose] = asyncio.ensure_future(asyncio.to_thread(self._runner.load, purpose))
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                await asyncio.shield(self._loading[purpose])
        except TimeoutError:
            raise DeadlineExceeded(f"the graph {purpose!r} is still being loaded") from None

    def _retry_after_s(self) -> float:
        """When what waits now will be gone, at the rate measured last."""
        if self._drained_per_s is None:
            return _UNKNOWN_RETRY_AFTER_S
        return min(_MAX_RETRY_AFTER_S, len(self._waiting) / self._drained_per_s)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await self._await_company()
            self._drop_late()
            if not self._waiting:
                self._arrived.clear()
                self._idle.set()
                continue
            snapshot = self._catalog()
            self._in_flight = self._take(most_filters(snapshot.num_items))
            if not self._waiting:
                self._arrived.clear()
            started_s = time.monotonic()
            outcomes = await loop.run_in_executor(self._executor, self._run, self._in_flight, snapshot)
            for entry, outcome in zip(self._in_flight, outcomes, strict=True):
                entry.settle(outcome)
            self._measure(len(outcomes), time.monotonic() - started_s)
            self._in_flight = []
            if not self._waiting:
                self._idle.set()

    async def _await_company(self) -> None:
        """Waits until the batch is full or its oldest request has waited `max_wait_s`."""
        self._full.clear()
        if self._max_wait_s <= 0 or not self._waiting or len(self._waiting) >= self._max_batch_size:
            return
        oldest = next(iter(self._waiting))
        try:
            async with asyncio.timeout(max(0.0, oldest.submitted_s + self._max_wait_s - time.monotonic())):
                await self._full.wait()
        except TimeoutError:
            return

    def _drop_late(self) -> None:
        """Lets those go that are cancelled or late."""
        now_s = time.monotonic()
        for entry in [entry for entry in self._waiting if entry.future.done() or entry.deadline_s <= now_s]:
            entry.expire()
            del self._waiting[entry]

    def _take(self, num_filters: int) -> list[_Entry]:
        """A batch of at most so many distinct filters: the oldest that waits and the next oldest for the same graph."""
        purpose = next(iter(self._waiting)).inputs.purpose
        same = (entry for entry in self._waiting if entry.inputs.purpose == purpose)
        filters: set[TagFilter | None] = set()
        taken: list[_Entry] = []
        for entry in same:
            if len(taken) == self._max_batch_size:
                break
            if len(filters) < num_filters or entry.inputs.tag_filter in filters:
                filters.add(entry.inputs.tag_filter)
                taken.append(entry)
        for entry in taken:
            del self._waiting[entry]
        return taken

    def _measure(self, num_requests: int, took_s: float) -> None:
        self._metrics.batch_size.observe(num_requests)
        rate = num_requests / max(took_s, 1e-6)
        known = self._drained_per_s
        self._drained_per_s = rate if known is None else known + _RATE_SMOOTHING * (rate - known)

    def _bury(self, worker: asyncio.Task[None]) -> None:
        """Nobody may wait for a worker that is gone."""
        if not worker.cancelled() and (error := worker.exception()) is not None:
            _log.critical("the batcher's worker died", exc_info=error)
        for entry in [*self._in_flight, *self._waiting]:
            entry.settle(RunnerError("the inference worker is gone"))
        self._idle.set()

    def _run(self, entries: Sequence[_Entry], snapshot: CatalogSnapshot) -> list[Answer | Exception]:
        """In the worker thread: one outcome per entry."""
        started_s = time.monotonic()
        batch, places, errors = self._build([entry.inputs for entry in entries], snapshot)
        outcomes: list[Answer | Exception] = [errors.get(place, _NOT_RUN) for place in range(len(entries))]
        if batch is None:
            return outcomes
        built_s = time.monotonic()
        try:
            decoded = self._runner.run(batch)
        except Exception as error:  # noqa: BLE001 - whatever it was, it fails this batch and no other
            _log.exception("the runner failed a batch of %d", len(places))
            return [errors.get(place, RunnerError(f"the run failed: {error}")) for place in range(len(entries))]
        ended_s = time.monotonic()
        for index, place in enumerate(places):
            outcomes[place] = Answer(
                snapshot=snapshot,
                beam_width=batch.beam_width,
                beams=decoded.of_request(index),
                queue_s=started_s - entries[place].submitted_s,
                features_s=built_s - started_s,
                inference_s=ended_s - built_s,
            )
        return outcomes

    def _build(
        self, requests: Sequence[RequestInputs], snapshot: CatalogSnapshot
    ) -> tuple[Batch | None, Sequence[int], dict[int, Exception]]:
        """The batch, the places of the requests in it, and the errors of those that cannot be in any."""
        manifest = self._runner.manifest
        try:
            return build_batch(requests, snapshot, manifest, self._max_batch_size), range(len(requests)), {}
        except Exception:  # noqa: BLE001 - one of them is bad; which one, each tells alone
            _log.debug("a batch could not be built at once", exc_info=True)
        errors: dict[int, Exception] = {}
        for place, request in enumerate(requests):
            try:
                build_batch([request], snapshot, manifest, self._max_batch_size)
            except Exception as error:  # noqa: BLE001 - the request's own error goes to the request
                errors[place] = error
        places = [place for place in range(len(requests)) if place not in errors]
        if not places:
            return None, places, errors
        good = [requests[place] for place in places]
        return build_batch(good, snapshot, manifest, self._max_batch_size), places, errors


_NOT_RUN = RunnerError("the request was not run")
