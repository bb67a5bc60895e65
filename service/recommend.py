"""The use case: from a user to a slate under one deadline, whatever fails on the way.

history -> inputs -> batch -> slate. Every step that fails has a lesser answer, and the answer says so.

Legend: E events, S seen or excluded items, W beams, K slate size, L levels.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from service.bundle import Manifest
from service.catalog import CatalogSnapshot
from service.domain import Impression, RankedSlate, Slate, SlateItem
from service.domain.explanation import ExplainedItem
from service.errors import DeadlineExceeded, HistoryUnavailable, Overloaded, RunnerError
from service.health import SlateHealth
from service.history import GuardedHistoryStore, ShownRecorder, UserHistory, shown_until
from service.inference.batch_run import Answer
from service.inference.batcher import Batcher
from service.inference.choice import slates_of
from service.inference.explain import explanation_of
from service.inference.features import RequestInputs
from service.inference.popular import PopularRanking
from service.metrics import Metrics
from service.query import QueryReader, RecommendQuery, item_keys
from service.randomness import random_hex

_log = logging.getLogger(__name__)

MODEL_UNAVAILABLE: Final = "model_unavailable"
DEADLINE: Final = "deadline"
HISTORY_UNAVAILABLE: Final = "history_unavailable"
STALE_HISTORY: Final = "stale_history"
UNKNOWN_CONTINUATION: Final = "unknown_continuation"
TOO_FEW_ITEMS: Final = "too_few_items"
NOT_EXPLAINED: Final = "not_explained"
COLD_START: Final = "cold_start"
REASONS: Final = (
    MODEL_UNAVAILABLE, DEADLINE, HISTORY_UNAVAILABLE, STALE_HISTORY, UNKNOWN_CONTINUATION, TOO_FEW_ITEMS,
    NOT_EXPLAINED, COLD_START,
)  # fmt: skip
"""The most severe first; an answer gives the first that holds."""
_DEGRADED: Final = frozenset({MODEL_UNAVAILABLE, DEADLINE, HISTORY_UNAVAILABLE, STALE_HISTORY, UNKNOWN_CONTINUATION})

_NO_REASON: Final = "none"
OUTCOMES: Final = tuple(
    ("popular" if reason in {MODEL_UNAVAILABLE, DEADLINE} else "model", reason) for reason in (_NO_REASON, *REASONS)
)
"""Source and reason of every answer that there can be."""

_ANSWER_RESERVE_S: Final = 0.002
"""Kept back from the deadline for the popular slate and its way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds spent by stage, and in all."""

    history_s: float
    features_s: float
    queue_s: float
    inference_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """An answer and how long it took."""

    recommendation_id: str
    slate: Slate
    timings: Timings


@dataclass(slots=True)
class _Course:
    """What happened to one request so far."""

    started_s: float
    deadline_s: float
    now_ms: int
    history_s: float = 0.0
    waited_s: float | None = None
    """In the queue, in vain."""
    reasons: set[str] = field(default_factory=set)


class Recommender:
    """Answers queries with slates."""

    def __init__(
        self,
        *,
        store: GuardedHistoryStore,
        batcher: Batcher,
        manifest: Manifest,
        catalog: Callable[[], CatalogSnapshot],
        metrics: Metrics,
        shown: ShownRecorder | None = None,
        health: SlateHealth | None = None,
    ) -> None:
        """`shown`: told of every slate that is answered, and `health` of the model's; None: nothing is kept of them."""
        self._store = store
        self._shown = shown
        self._health = health
        self._batcher = batcher
        self._manifest = manifest
        self._metrics = metrics
        self._popular = PopularRanking(catalog)
        self._reader = QueryReader(manifest)

    async def recommend(self, query: RecommendQuery, started_s: float) -> Recommendation:
        """The slate for a query; late or broken parts make it lesser, never an error.

        Args:
            query: What is asked.
            started_s: When the request came, on the clock of `time.monotonic`.

        Raises:
            Overloaded: the request is not admitted.
        """
        deadline_s = started_s + query.deadline_ms / 1000 - _ANSWER_RESERVE_S
        course = _Course(started_s, deadline_s, time.time_ns() // 1_000_000)
        self._batcher.refuse_early(deadline_s, query.tenant, query.kind)
        inputs = await self._inputs(query, course)
        answer = await self._decode(inputs, course, query.tenant)
        if answer is None:
            snapshot, items = await self._popular_items(inputs, query.slate_size)
            slates: list[RankedSlate] = []
        else:
            snapshot, choice = answer.snapshot, self._manifest.choice
            slates = slates_of(
                answer.beams, snapshot, query.slate_size, query.num_slates, choice, diversity=query.diversity
            )
            items = slates[0].items
        explanation = await self._explain(inputs, slates, course, query.tenant) if query.explain else None
        if len(items) < query.slate_size:
            course.reasons.add(TOO_FEW_ITEMS)
        slate = Slate(
            items=items,
            score=slates[0].score if slates else None,
            reward=slates[0].reward if slates else None,
            propensity=slates[0].propensity if slates else None,
            seed=None if answer is None or query.temperature is None else query.seed,
            alternatives=tuple(slates[1:]),
            explanation=explanation,
            source="popular" if answer is None else "model",
            model_version=self._manifest.model_version,
            catalog_version=snapshot.version,
            beam_width=0 if answer is None else answer.beam_width,
            degraded=not _DEGRADED.isdisjoint(course.reasons),
            reason=next((reason for reason in REASONS if reason in course.reasons), None),
        )
        if self._health is not None and answer is not None:
            self._health.observe(slates[0], answer.beams, snapshot, is_typical=self._is_typical(query, slate))
        return self._finish(query, slate, answer, course)

    def _is_typical(self, query: RecommendQuery, slate: Slate) -> bool:
        """Whether the slate was made as the bundle's reference slates were: see `SlateHealth.observe`."""
        return (
            slate.reason is None
            and slate.beam_width == self._manifest.beam_width
            and query.temperature is None
            and query.tag_filter is None
            and query.continue_from is None
            and not query.max_per_group
            and not query.diversity
            and not query.exclude
        )

    async def _decode(self, inputs: RequestInputs, course: _Course, tenant: str) -> Answer | None:
        """What the model writes; None, and a note in `course`, where it does not."""
        began_s = time.monotonic()
        try:
            return await self._batcher.submit(inputs, course.deadline_s, tenant)
        except DeadlineExceeded:
            course.waited_s = time.monotonic() - began_s
            course.reasons.add(DEADLINE)
        except RunnerError:
            course.reasons.add(MODEL_UNAVAILABLE)
        return None

    async def _explain(
        self, inputs: RequestInputs, slates: Sequence[RankedSlate], course: _Course, tenant: str
    ) -> tuple[ExplainedItem, ...] | None:
        """Why the best slate came out: a second run through the queue, within what is left of the deadline.

        What fails here costs the explanation alone, and `course` notes it.
        """
        if not slates:
            course.reasons.add(NOT_EXPLAINED)
            return None
        keys_K = item_keys([item.item_id for item in slates[0].items])
        request = replace(inputs, purpose="explain", beam_width=None, forced_keys_K=keys_K)
        try:
            answer = await self._batcher.submit(request, course.deadline_s, tenant)
        except (DeadlineExceeded, RunnerError, Overloaded):
            course.reasons.add(NOT_EXPLAINED)
            return None
        # Looking for examples in a large catalog takes milliseconds: not on the event loop.
        explanation = await asyncio.to_thread(explanation_of, answer.beams, answer.snapshot, request)
        if explanation is None:
            course.reasons.add(NOT_EXPLAINED)
        return explanation

    def _finish(self, query: RecommendQuery, slate: Slate, answer: Answer | None, course: _Course) -> Recommendation:
        recommendation_id = _new_id(course.now_ms)
        if self._shown is not None:
            impression = Impression(
                user_id=query.user_id,
                recommendation_id=recommendation_id,
                continued_from=query.continue_from,
                timestamp_ms=course.now_ms,
                slate=slate,
                temperature=None if slate.propensity is None else query.temperature,
            )
            self._shown.add(impression)
        total_s = time.monotonic() - course.started_s
        features_s, queue_s, inference_s = (
            (None, course.waited_s, None) if answer is None else (answer.features_s, answer.queue_s, answer.inference_s)
        )
        self._metrics.observe_stages((course.history_s, features_s, queue_s, inference_s, total_s))
        self._metrics.slates.labels(slate.source, slate.reason or _NO_REASON).inc()
        timings = Timings(
            history_s=course.history_s,
            features_s=features_s or 0.0,
            queue_s=queue_s or 0.0,
            inference_s=inference_s or 0.0,
            total_s=total_s,
        )
        return Recommendation(recommendation_id=recommendation_id, slate=slate, timings=timings)

    async def _inputs(self, query: RecommendQuery, course: _Course) -> RequestInputs:
        """The model's inputs for the query; notes in `course` what is missing from them."""
        stored = None
        if query.history is None or query.continue_from is not None:
            stored = await self._read(query, course)
        inputs = self._reader.inputs(query, stored, course.now_ms)
        if query.continue_from is not None:
            shown_S = None if stored is None else shown_until(stored.shown, query.continue_from)
            if shown_S is None:
                course.reasons.add(UNKNOWN_CONTINUATION)
            else:
                inputs = replace(inputs, excluded_keys_S=np.concatenate([inputs.excluded_keys_S, shown_S]))
        if not len(inputs.item_keys_E) and HISTORY_UNAVAILABLE not in course.reasons:
            course.reasons.add(COLD_START)
        return inputs

    async def _read(self, query: RecommendQuery, course: _Course) -> UserHistory | None:
        began_s = time.monotonic()
        if query.continue_from is not None and self._shown is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout((course.deadline_s - began_s) / 4):
                    await self._shown.written(query.user_id)
        try:
            stored = await self._store.read_or_copy(
                query.user_id,
                course.now_ms,
                with_shown=query.continue_from is not None,
                # Half of the time: without a history there still is a model, without time there is none.
                timeout_s=(course.deadline_s - began_s) / 2,
            )
        except HistoryUnavailable as error:
            self._metrics.history_errors.labels("read").inc()
            _log.warning("answering without history: %s", error)
            course.reasons.add(HISTORY_UNAVAILABLE)
            return None
        finally:
            course.history_s = time.monotonic() - began_s
        if stored.stale_s:
            self._metrics.stale_histories.inc()
            course.reasons.add(STALE_HISTORY)
        return stored

    async def _popular_items(
        self, inputs: RequestInputs, slate_size: int
    ) -> tuple[CatalogSnapshot, tuple[SlateItem, ...]]:
        await self._popular.ready()
        snapshot, ranked = self._popular.slate(inputs, slate_size)
        sids = snapshot.sids_NL[[row for row, _ in ranked]].tolist()
        items = snapshot.items
        return snapshot, tuple(
            SlateItem(items[row].item_id, score, tuple(sid)) for (row, score), sid in zip(ranked, sids, strict=True)
        )


def _new_id(now_ms: int) -> str:
    """Unique, and in the order of time: 48 bits of milliseconds, then 80 random ones."""
    return f"{now_ms:012x}{random_hex(10)}"
