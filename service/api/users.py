"""`/v1/users/{user_id}/history`: read what is kept of a user, or forget it."""

from typing import Annotated

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api.answers import HistoryAnswer, UsersAnswer
from service.api.auth import admit
from service.api.openapi import problems
from service.api.paths import PathId
from service.api.replies import json_response
from service.api.serving import Serving, serving_of
from service.errors import HistoryUnavailable
from service.problems import HISTORY_UNAVAILABLE, INVALID_REQUEST

router = APIRouter(tags=["users"])
_ROUTE = "/v1/users/{user_id:any_text}/history"


@router.get(
    _ROUTE, response_model=HistoryAnswer, responses=problems(INVALID_REQUEST, HISTORY_UNAVAILABLE, scope="events")
)
async def read_history(user_id: PathId, request: Request) -> Response:
    """The stored history, newest last; an unknown user's is empty."""
    caller, serving = admit(request, "events"), serving_of(request)
    caller.check_user(user_id, "user_id")
    try:
        history = await serving.store.read(user_id)
    except HistoryUnavailable:
        serving.metrics.history_errors.labels("read").inc()
        raise
    names = _names(np.ascontiguousarray(history.entries_N["item_key"]), serving)
    events = [
        {"item_id": name, "action": entry.action, "timestamp": entry.timestamp_ms / 1000, "value": entry.value}
        for name, entry in zip(names, history.as_entries(), strict=True)
    ]
    num_seen = len(np.unique(history.seen_keys))
    return json_response({"user_id": user_id, "events": events, "num_seen": num_seen})


@router.delete(_ROUTE, status_code=204, responses=problems(INVALID_REQUEST, HISTORY_UNAVAILABLE, scope="events"))
async def forget_history(user_id: PathId, request: Request) -> Response:
    """Forgets the user's history, seen items and event ids; also when there is nothing."""
    caller, serving = admit(request, "events"), serving_of(request)
    caller.check_user(user_id, "user_id")
    if serving.shown is not None:
        await serving.shown.forget(user_id)
    try:
        await serving.store.delete(user_id)
    except HistoryUnavailable:
        serving.metrics.history_errors.labels("delete").inc()
        raise
    return Response(status_code=204)


@router.get(
    "/v1/users", response_model=UsersAnswer, responses=problems(INVALID_REQUEST, HISTORY_UNAVAILABLE, scope="admin")
)
async def some_users(
    request: Request, limit: Annotated[int, Query(ge=1, le=100, description="Users to name.")] = 20
) -> Response:
    """A few users who have a history, at random: to look around with, not to list them."""
    caller, serving = admit(request, "admin"), serving_of(request)
    if caller.user_id is not None:
        return json_response({"user_ids": [caller.user_id]})
    try:
        user_ids = await serving.store.some_users(limit)
    except HistoryUnavailable:
        serving.metrics.history_errors.labels("some_users").inc()
        raise
    return json_response({"user_ids": user_ids})


def _names(key_N: npt.NDArray[np.uint64], serving: Serving) -> list[str | None]:
    """Of items, by the first catalog in service that holds them; None: none does."""
    names: list[str | None] = [None] * len(key_N)
    for model in serving.models.loaded():
        snapshot = model.catalog()
        for place, row in enumerate(snapshot.rows_of_keys(key_N).tolist()):
            if row >= 0 and names[place] is None:
                names[place] = snapshot.items[row].item_id
    return names
