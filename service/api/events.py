"""`POST /v1/events`: what users did."""

import time
from collections.abc import Mapping, Sequence
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
from service.domain import Event
from service.errors import HistoryUnavailable
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
    refused = _refused(body.events, serving)
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


def _refused(events: Sequence[EventBody], serving: Serving) -> Mapping[int, Problem]:
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
