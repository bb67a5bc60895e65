"""One run of a batch: its requests, what the worker thread does with them, and what each gets of it."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.bundle import Manifest
from service.bundle.manifest import Purpose
from service.catalog import CatalogSnapshot
from service.errors import DeadlineExceeded, RunnerError
from service.inference.features import Kind, RequestInputs, build_batch
from service.inference.runner import Batch, Beams, Runner

_log = logging.getLogger(__name__)


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
class Entry:
    """A request that waits for its answer."""

    inputs: RequestInputs
    tenant: str
    deadline_s: float
    future: asyncio.Future[Answer]
    submitted_s: float = field(default_factory=time.monotonic)
    kind: Kind = field(init=False)
    """Of its inputs; kept, because everybody who comes asks everybody who waits."""

    def __post_init__(self) -> None:
        self.kind = self.inputs.kind

    def expire(self) -> None:
        """Its time is over."""
        self.settle(DeadlineExceeded("the request ran out of time"))

    def settle(self, outcome: Answer | Exception) -> None:
        """Gives its answer, or its error; the first one counts."""
        if self.future.done():  # late or cancelled meanwhile
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Requests that are answered at once, and how."""

    entries: Sequence[Entry]
    snapshot: CatalogSnapshot
    beam_width: int
    started_s: float = field(default_factory=time.monotonic)

    @property
    def purpose(self) -> Purpose:
        """Which graph runs."""
        return self.entries[0].inputs.purpose

    def outcomes(self, runner: Runner, max_batch_size: int) -> list[Answer | Exception]:
        """One for each entry; in the worker thread."""
        entries = self.entries
        started_s = time.monotonic()
        batch, places, errors = self._build(runner.manifest, max_batch_size)
        outcomes: list[Answer | Exception] = [errors.get(place, _NOT_RUN) for place in range(len(entries))]
        if batch is None:
            return outcomes
        built_s = time.monotonic()
        try:
            decoded = runner.run(batch)
        except Exception as error:  # noqa: BLE001 - whatever it was, it fails this batch and no other
            _log.exception("the runner failed a batch of %d", len(places))
            return [errors.get(place, RunnerError(f"the run failed: {error}")) for place in range(len(entries))]
        ended_s = time.monotonic()
        for index, place in enumerate(places):
            outcomes[place] = Answer(
                snapshot=self.snapshot,
                beam_width=batch.beam_width,
                beams=decoded.of_request(index),
                queue_s=started_s - entries[place].submitted_s,
                features_s=built_s - started_s,
                inference_s=ended_s - built_s,
            )
        return outcomes

    def _build(
        self, manifest: Manifest, max_batch_size: int
    ) -> tuple[Batch | None, Sequence[int], dict[int, Exception]]:
        """The batch, the places of the requests in it, and the errors of those that cannot be in any."""
        requests = [entry.inputs for entry in self.entries]

        def build(some: Sequence[RequestInputs]) -> Batch:
            return build_batch(some, self.snapshot, manifest, max_batch_size, beam_width=self.beam_width)

        try:
            return build(requests), range(len(requests)), {}
        except Exception:  # noqa: BLE001 - one of them is bad; which one, each tells alone
            _log.debug("a batch could not be built at once", exc_info=True)
        errors: dict[int, Exception] = {}
        for place, request in enumerate(requests):
            try:
                build([request])
            except Exception as error:  # noqa: BLE001 - the request's own error goes to the request
                errors[place] = error
        places = [place for place in range(len(requests)) if place not in errors]
        if not places:
            return None, places, errors
        try:
            return build([requests[place] for place in places]), places, errors
        except Exception as error:  # noqa: BLE001 - as above, of the batch
            _log.exception("a batch of %d cannot be built, though each of it can", len(places))
            failed = RunnerError(f"the batch cannot be built: {error}")
            return None, (), errors | dict.fromkeys(places, failed)


_NOT_RUN = RunnerError("the request was not run")
