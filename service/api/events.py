"""`POST /v1/events`: what users did."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.answers import EventsAnswer
from service.api.auth import admit
from service.api.body import invalid, read_json
from service.api.openapi import OF_BODIES, json_body, problems
from service.api.replies import json_response
from service.api.requests import EventBody, EventsBody
from service.api.serving import Serving, serving_of
from service.domain import Event, item_key
from service.errors import CatalogError, CatalogUnavailable, HistoryUnavailable
from service.history import EventOutcome
from service.models import Model
from service.problems import (
    EVENT_LOG_FULL,
    HISTORY_UNAVAILABLE,
    REFUSED_EVENT,
    UNKNOWN_ACTION,
    UNKNOWN_ITEM,
    FieldError,
    Problem,
)

router = APIRouter(tags=["events"])


@router.post(
    "/v1/events",
    response_model=EventsAnswer,
    responses=problems(*OF_BODIES, HISTORY_UNAVAILABLE, EVENT_LOG_FULL, scope="events"),
    openapi_extra=json_body(EventsBody),
)
async def add_events(request: Request) -> Response:
    """Stores events, each once by its `event_id`. 503: none is acknowledged, send all again."""
    caller, serving = admit(request, "events"), serving_of(request)
    body = await read_json(request, EventsBody)
    if len(body.events) > (most := serving.settings.limits.events):
        raise invalid("/events", f"at most {most} events, not {len(body.events)}")
    for place, event in enumerate(body.events):
        caller.check_user(event.user_id, f"/events/{place}/user_id")
    refused = await _refused(body.events, serving)
    events = [_event(event, serving.model) for place, event in enumerate(body.events) if place not in refused]
    outcomes = iter(await _append(events, serving))
    results = []
    for place, event in enumerate(body.events):
        problem = refused.get(place)
        outcome = EventOutcome("refused") if problem is not None else next(outcomes)
        results.append(_result(event.event_id, outcome, problem, place))
        serving.metrics.events.labels(outcome.status).inc()
    return json_response({"results": results})


async def _append(events: Sequence[Event], serving: Serving) -> Sequence[EventOutcome]:
    if not events:
        return []
    try:
        return await serving.store.append(events, time.time_ns() // 1_000_000)
    except HistoryUnavailable:
        serving.metrics.history_errors.labels("append").inc()
        raise


async def _refused(events: Sequence[EventBody], serving: Serving) -> Mapping[int, Problem]:
    """Problems, by place, of the events that name what nobody can have seen.

    What this replica does not know another one may have shown: an item that has just been added, or one of a model that
    is not here yet, or not any more. A refusal is final, so the catalog's log and the user's slates are asked first.
    """
    refused = _unknown(events, serving)
    if all(problem.type is not UNKNOWN_ITEM for problem in refused.values()):
        return refused
    if serving.models.missing is not None:  # what others show is not known here
        return {}
    for model in serving.models.loaded():
        with suppress(CatalogUnavailable, CatalogError):
            await model.follower.look()
    refused = _unknown(events, serving)
    doubtful = [place for place, problem in refused.items() if problem.type is UNKNOWN_ITEM]
    were_shown = await _were_shown([events[place] for place in doubtful], serving)
    for place, was_shown in zip(doubtful, were_shown, strict=True):
        if was_shown:
            del refused[place]
    return refused


async def _were_shown(events: Sequence[EventBody], serving: Serving) -> list[bool]:
    """Whether the item of each event stood in the slate that it names, of those that are kept of its user."""
    users = sorted({event.user_id for event in events if event.recommendation_id is not None})
    shown: set[tuple[str, str | None, int]] = set()
    try:
        for user_id in users:
            for slate in (await serving.store.read(user_id, with_shown=True)).shown:
                shown.update((user_id, slate.recommendation_id, key) for key in slate.item_keys)
    except HistoryUnavailable:
        serving.metrics.history_errors.labels("read").inc()
        raise
    return [(event.user_id, event.recommendation_id, item_key(event.item_id)) in shown for event in events]


def _unknown(events: Sequence[EventBody], serving: Serving) -> dict[int, Problem]:
    """Problems of the events that name what no model in service holds, by place: some users see a canary's items."""
    models = serving.models.loaded()
    snapshots = [model.catalog() for model in models]
    actions = {action for model in models for action in model.manifest.action_numbers}
    refused = {}
    for place, event in enumerate(events):
        if all(snapshot.row_of(event.item_id) is None for snapshot in snapshots):
            detail = f"{event.item_id!r} is not in catalog {snapshots[0].version}"
            refused[place] = Problem(UNKNOWN_ITEM, detail, [FieldError(f"/events/{place}/item_id", detail)])
        elif event.action is not None and event.action not in actions:
            detail = f"{event.action!r} is not one of {', '.join(sorted(actions))}"
            refused[place] = Problem(UNKNOWN_ACTION, detail, [FieldError(f"/events/{place}/action", detail)])
    return refused


def _event(body: EventBody, model: Model) -> Event:
    return Event(
        user_id=body.user_id,
        item_id=body.item_id,
        action=body.action or model.manifest.default_action,
        timestamp_ms=body.timestamp,
        value=body.value,
        event_id=body.event_id,
        recommendation_id=body.recommendation_id,
    )


def _result(event_id: str, outcome: EventOutcome, problem: Problem | None, place: int) -> dict[str, Any]:
    result: dict[str, Any] = {"event_id": event_id, "status": outcome.status}
    if outcome.status == "refused":
        if problem is None:
            field = "value" if outcome.reason == "value_out_of_range" else "timestamp"
            pointer = f"/events/{place}/{'action' if outcome.reason == 'too_many_actions' else field}"
            problem = Problem(REFUSED_EVENT, outcome.detail, [FieldError(pointer, outcome.detail)])
        result["problem"] = problem.members()
    return result
