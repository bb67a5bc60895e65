"""The micro-batcher: groups what waits, runs it in one worker thread, and gives every request its own answer.

While one run is in flight arrivals queue up; the next run takes the oldest and all others of the same kind, up to the
largest batch, those that pad nobody first. An idle worker starts at once unless `max_wait_s` lets it wait for company.

A request is admitted if what runs and waits will leave it time, by the pace of the runs before it. The longer the
queue, the narrower the beams: an answer that searched less beats none.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final

from service.bundle.manifest import Purpose
from service.catalog import CatalogSnapshot, TagFilter
from service.errors import DeadlineExceeded, Overloaded, RunnerError
from service.inference.batch_run import Answer, Entry, Run
from service.inference.features import Kind, RequestInputs, length_bucket, most_filters
from service.inference.feeds import graph_spec
from service.inference.pace import Pace
from service.inference.runner import Runner
from service.inference.waiting import WaitingRoom
from service.metrics import Metrics

_log = logging.getLogger(__name__)
_CONFIDENCE: Final = 0.7
"""Of the time that is left a request may be expected to take so much: what is expected is a mean, and the way back to
the client takes time, too."""
_UNKNOWN_RETRY_AFTER_S: Final = 1.0
_MAX_RETRY_AFTER_S: Final = 60.0
_USUAL: Final = Kind()


class Batcher:
    """Made on a running event loop; every method is called on that loop."""

    def __init__(
        self,
        runner: Runner,
        catalog: Callable[[], CatalogSnapshot],
        metrics: Metrics,
        *,
        pace: Pace | None = None,
        max_batch_size: int = 32,
        max_wait_s: float = 0.0,
        queue_limit: int = 256,
        min_beam_width: int | None = None,
        restart_pause_s: float = 1.0,
    ) -> None:
        """Starts the worker.

        Args:
            runner: Runs in the worker thread alone; loads its further graphs in others.
            catalog: Gives the snapshot of a batch; called once per batch.
            metrics: Batch sizes and queue depth go there.
            pace: What is known of the runner already; None: nothing.
            max_batch_size: Most requests of one run.
            max_wait_s: How long an idle worker waits for a batch to fill; 0: not at all.
            queue_limit: Most requests that wait; further ones are not admitted.
            min_beam_width: How narrow beams become while requests queue up; None: they stay as the manifest has them.
            restart_pause_s: How long a worker that died is left dead.
        """
        self._runner = runner
        self._catalog = catalog
        self._metrics = metrics
        self._pace = Pace(max_batch_size) if pace is None else pace
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_wait_s
        self._queue_limit = queue_limit
        self._min_beam_width = min_beam_width
        self._restart_pause_s = restart_pause_s
        self._waiting: WaitingRoom[Entry] = WaitingRoom()
        self._running: Run | None = None
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._loading: dict[Purpose, asyncio.Future[None]] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="oneslate-runner")
        self._restart: asyncio.TimerHandle | None = None
        self._start()

    @property
    def alive(self) -> bool:
        """False when the worker is gone: nothing is answered until it is there again."""
        return not self._worker.done()

    @property
    def running_s(self) -> float:
        """How long the run in flight has taken so far; 0: there is none."""
        return 0.0 if self._running is None else time.monotonic() - self._running.started_s

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a run."""
        return len(self._waiting)

    def refuse_early(self, deadline_s: float, tenant: str = "", kind: Kind = _USUAL) -> None:
        """Raises Overloaded where a request would not be admitted now, before anything is done for it.

        Args:
            deadline_s: On the clock of `time.monotonic`.
            tenant: Whose it is.
            kind: With which others it may share a run.
        """
        with suppress(DeadlineExceeded):  # it gets a lesser answer
            self._check(kind, 1, deadline_s - time.monotonic(), tenant)

    async def submit(self, inputs: RequestInputs, deadline_s: float, tenant: str = "") -> Answer:
        """Waits for the request's turn and its answer.

        Args:
            inputs: What the request brings.
            deadline_s: On the clock of `time.monotonic`.
            tenant: Whose it is; tenants take turns.

        Raises:
            Overloaded: the queue is full, or too long for the deadline.
            DeadlineExceeded: the time is over, or too short for any run; what waits is not computed any more.
            RunnerError: the run of this batch failed, or the worker is gone.
            Exception: whatever this request's own inputs made the feature building raise.
        """
        if inputs.purpose != "generator":
            await self._load(inputs.purpose, deadline_s)
        if self._closing or not self.alive:
            raise RunnerError("the batcher does not run")
        loop = asyncio.get_running_loop()
        entry = Entry(inputs, tenant, deadline_s, loop.create_future())
        self._check(entry.kind, inputs.num_slates, deadline_s - entry.submitted_s, tenant)
        self._make_room(tenant)
        timer = loop.call_later(max(0.0, deadline_s - entry.submitted_s), entry.expire)
        self._waiting.add(entry)
        self._arrived.set()
        self._idle.clear()
        try:
            return await entry.future
        finally:
            timer.cancel()
            self._waiting.discard(entry)

    async def close(self, grace_s: float = 5.0) -> None:
        """Admits no more, lets what waits finish for at most `grace_s`, fails the rest, and ends the worker."""
        self._closing = True
        if self._restart is not None:
            self._restart.cancel()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            num_running = 0 if self._running is None else len(self._running.entries)
            _log.warning("%d requests did not finish in %g s", len(self._waiting) + num_running, grace_s)
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        self._worker = asyncio.create_task(self._work(), name="batcher")
        self._worker.add_done_callback(self._bury)

    async def _load(self, purpose: Purpose, deadline_s: float) -> None:
        """Waits until the graph is loaded; who needs another one does not wait, and who is late does not end it.

        All who wait share one attempt. Where it failed, the next request makes another one, but for a graph that the
        bundle does not have.
        """
        graph_spec(self._runner.manifest, purpose)
        if purpose not in self._loading:
            self._loading[purpose] = loading = asyncio.ensure_future(asyncio.to_thread(self._runner.load, purpose))
            loading.add_done_callback(partial(self._loaded, purpose))
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                await asyncio.shield(self._loading[purpose])
        except TimeoutError:
            raise DeadlineExceeded(f"the graph {purpose!r} is still being loaded") from None

    def _loaded(self, purpose: Purpose, loading: asyncio.Future[None]) -> None:
        if not loading.cancelled() and (error := loading.exception()) is not None:
            _log.error("the graph %r does not load", purpose, exc_info=error)
            del self._loading[purpose]

    def _check(self, kind: Kind, num_slates: int, left_s: float, tenant: str) -> None:
        """Raises where there is no use in waiting."""
        if left_s <= 0:
            raise DeadlineExceeded("the request ran out of time")
        if self._running is None and not self._waiting:
            return  # whatever the pace was: there is nothing to wait for, and this run will tell it anew
        sure_s = left_s * _CONFIDENCE
        wait_s, run_s = self._expected(kind, num_slates, tenant)
        if run_s is not None and run_s > sure_s:
            raise DeadlineExceeded("no run is as short as the time that is left")
        expected_s = None if wait_s is None or run_s is None else wait_s + run_s
        if expected_s is not None and expected_s > sure_s:
            raise Overloaded("the queue is too long for the deadline", retry_after_s=_soon(expected_s - sure_s))
        if len(self._waiting) >= self._queue_limit and self._waiting.displaced_by(tenant) is None:
            raise Overloaded("too many requests wait already", retry_after_s=_soon(wait_s))

    def _make_room(self, tenant: str) -> None:
        """In a full queue for a tenant that has fewer requests there than another one."""
        if len(self._waiting) < self._queue_limit:
            return
        displaced = self._waiting.displaced_by(tenant)
        assert displaced is not None, "refused before"
        wait_s, _ = self._expected(displaced.kind, 1, displaced.tenant)
        displaced.settle(Overloaded("others have fewer requests waiting", retry_after_s=_soon(wait_s)))
        self._waiting.discard(displaced)

    def _expected(self, kind: Kind, num_slates: int, tenant: str) -> tuple[float | None, float | None]:
        """Seconds that a request would wait for its run, and that this would take; None: not known yet.

        A run takes requests of one kind, so those ahead take for every kind as many runs as hold them; of the request's
        own kind the last that is not full is its own run. These runs take as long in any order, and its own may begin
        before some of them: it ends no later than is expected here. This assumes that those of a kind fill its runs in
        their turn (lengths of histories and filters may part them), and that no other tenant comes to the rounds ahead
        meanwhile.
        """
        ahead = self._waiting.ahead(tenant)
        place = ahead.get(kind, 0) % self._max_batch_size
        run_s = self._pace.seconds(kind.purpose, place + 1, self._beam_width(kind, num_slates, 0))
        if run_s is None:
            return None, None
        wait_s = self._rest_of_run_s()
        for other, number in ahead.items():
            num_joining = place if other == kind else 0
            # A graph that nobody has seen run counts as the request's own.
            wait_s += self._runs_s(other, number - num_joining, num_joining + 1, unknown_s=run_s)
        return wait_s, run_s

    def _runs_s(self, kind: Kind, number: int, num_behind: int, unknown_s: float) -> float:
        """Seconds that runs of so many of a kind take, one after another.

        Beams widen again as the queue shrinks. Of those of other kinds `num_behind` alone are sure to wait still: the
        rest may have had their turn by then.
        """
        total_s = 0.0
        while number > 0:
            size = min(number, self._max_batch_size)
            number -= size
            run_s = self._pace.seconds(kind.purpose, size, self._beam_width(kind, 1, number + num_behind))
            total_s += unknown_s if run_s is None else run_s
        return total_s

    def _rest_of_run_s(self) -> float:
        if self._running is None:
            return 0.0
        run = self._running
        whole_s = self._pace.seconds(run.purpose, len(run.entries), run.beam_width)
        return 0.0 if whole_s is None else max(0.0, whole_s - self.running_s)

    async def _work(self) -> None:
        # Else how it ended would hold its frame, that us, and we it: nobody would free the runner.
        with suppress(asyncio.CancelledError):
            await self._run_all()

    async def _run_all(self) -> None:
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
            entries = self._take(most_filters(snapshot.num_items))
            num_slates = max(entry.inputs.num_slates for entry in entries)
            width = self._beam_width(entries[0].kind, num_slates, len(self._waiting))
            self._running = run = Run(entries, snapshot, width)
            if not self._waiting:
                self._arrived.clear()
            outcomes = await loop.run_in_executor(self._executor, run.outcomes, self._runner, self._max_batch_size)
            for entry, outcome in zip(entries, outcomes, strict=True):
                entry.settle(outcome)
            if any(isinstance(outcome, Answer) for outcome in outcomes):
                self._pace.learn(run.purpose, len(entries), run.beam_width, self.running_s)
            self._metrics.batch_size.observe(len(entries))
            self._metrics.beam_width.set(run.beam_width)
            self._running = None
            if not self._waiting:
                self._idle.set()

    async def _await_company(self) -> None:
        """Waits until the batch is full, its oldest has waited `max_wait_s`, or a deadline asks for a start."""
        while self._max_wait_s > 0 and 0 < len(self._waiting) < self._max_batch_size:
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._company_until_s() - time.monotonic()):
                    await self._arrived.wait()
            except TimeoutError:
                self._arrived.set()
                return

    def _company_until_s(self) -> float:
        oldest_s = min(entry.submitted_s for entry in self._waiting)
        # Whose time ends first may be of the kind that is served last. What nobody knows: whoever waits so long for
        # company has runs of that order.
        run_s = sum(
            self._runs_s(kind, number + 1, 0, unknown_s=self._max_wait_s)
            for kind, number in self._waiting.num_of_kind.items()
        )
        earliest_s = min(entry.deadline_s for entry in self._waiting)
        return min(oldest_s + self._max_wait_s, earliest_s - run_s / _CONFIDENCE)

    def _drop_late(self) -> None:
        """Lets those go that are cancelled or late."""
        now_s = time.monotonic()
        for entry in [entry for entry in self._waiting if entry.future.done() or entry.deadline_s <= now_s]:
            entry.expire()
            self._waiting.discard(entry)

    def _take(self, num_filters: int) -> list[Entry]:
        """A batch of at most so many distinct filters: who is served next, and others of its kind in their turn.

        Those whose history is not longer go first, since they pad nobody; longer ones fill the places that are left.
        """
        first = self._waiting.next()
        longest = length_bucket(first.inputs, self._runner.manifest)
        same = [entry for entry in self._waiting if entry.kind == first.kind]
        same.sort(key=lambda entry: length_bucket(entry.inputs, self._runner.manifest) > longest)
        filters: set[TagFilter | None] = set()
        taken: list[Entry] = []
        for entry in same:
            if len(taken) == self._max_batch_size:
                break
            if len(filters) < num_filters or entry.inputs.tag_filter in filters:
                filters.add(entry.inputs.tag_filter)
                taken.append(entry)
        for entry in taken:
            self._waiting.discard(entry)
        return taken

    def _beam_width(self, kind: Kind, num_slates: int, num_behind: int) -> int:
        """Halved for every full batch that waits behind this one, as far as it may be and holds the slates asked for.

        Slates that are drawn keep their width, which is part of what their propensities mean, as do those that name it.
        """
        if kind.beam_width is not None:
            return kind.beam_width
        widest = self._runner.manifest.beam_width
        if self._min_beam_width is None or kind.purpose != "generator":
            return widest
        narrowest = max(self._min_beam_width, num_slates)
        return max(min(narrowest, widest), widest >> min(num_behind // self._max_batch_size, 16))

    def _bury(self, worker: asyncio.Task[None]) -> None:
        """Nobody may wait for a worker that is gone; another one takes its place."""
        if not worker.cancelled() and (error := worker.exception()) is not None:
            _log.critical("the batcher's worker died", exc_info=error)
            self._metrics.batcher_restarts.inc()
            if not self._closing:
                self._restart = asyncio.get_running_loop().call_later(self._restart_pause_s, self._start)
        for entry in [*(() if self._running is None else self._running.entries), *self._waiting]:
            entry.settle(RunnerError("the inference worker is gone"))
        self._running = None
        self._idle.set()


def _soon(seconds: float | None) -> float:
    """When to come again: once so much is gone."""
    return _UNKNOWN_RETRY_AFTER_S if seconds is None else min(_MAX_RETRY_AFTER_S, seconds)
