"""`POST /v1/recommend`."""

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.answers import RecommendAnswer
from service.api.body import invalid, read_json
from service.api.disconnects import ClientGone, while_connected
from service.api.openapi import json_body, problems
from service.api.replies import json_response
from service.api.requests import FilterBody, RecommendBody
from service.api.serving import Serving, serving_of
from service.catalog import TagFilter
from service.recommend import Recommendation, RecommendQuery

router = APIRouter(tags=["recommend"])


@router.post(
    "/v1/recommend",
    response_model=RecommendAnswer,
    responses=problems(400, 413, 415, 422, 429, 503),
    openapi_extra=json_body(RecommendBody),
)
async def recommend(request: Request) -> Response:
    """The user's next slate, within the deadline."""
    started_s = time.monotonic()
    serving = serving_of(request)
    query = to_query(await read_json(request, RecommendBody), serving)
    try:
        answer = await while_connected(request, serving.recommender.recommend(query, started_s))
    except ClientGone:
        return Response(status_code=499)  # nobody reads it; it ends in the metrics
    return json_response(to_members(answer))


def to_query(body: RecommendBody, serving: Serving) -> RecommendQuery:
    """The query in the service's own words.

    Raises:
        ProblemError: the body asks more than the model or the limits give, or names what does not exist.
    """
    manifest, limits = serving.runner.manifest, serving.settings.limits
    actions = manifest.action_numbers
    if body.slate_size > manifest.slate_size:
        raise invalid("/slate_size", f"this model's slates have at most {manifest.slate_size} items")
    if len(body.exclude) > limits.exclude:
        raise invalid("/exclude", f"at most {limits.exclude} items, not {len(body.exclude)}")
    history = None
    if body.history is not None:
        if len(body.history) > limits.history:
            raise invalid("/history", f"at most {limits.history} events, not {len(body.history)}")
        history = [event.past_event(manifest.default_action) for event in body.history]
        for place, event in enumerate(history):
            if event.action not in actions:
                raise invalid(f"/history/{place}/action", f"{event.action!r} is not one of {', '.join(actions)}")
    for place, action in enumerate(body.seen_actions or ()):
        if action not in actions:
            raise invalid(f"/seen_actions/{place}", f"{action!r} is not one of {', '.join(actions)}")
    return RecommendQuery(
        user_id=body.user_id,
        slate_size=body.slate_size,
        history=history,
        exclude=body.exclude,
        exclude_seen=body.exclude_seen,
        seen_actions=None if body.seen_actions is None else frozenset(body.seen_actions),
        tag_filter=_filter(body.filter, serving),
        deadline_ms=serving.settings.deadline_ms if body.deadline_ms is None else body.deadline_ms,
    )


def _filter(asked: str | FilterBody | None, serving: Serving) -> TagFilter | None:
    if asked is None:
        return None
    if isinstance(asked, str):
        if (named := serving.filters.get(asked)) is None:
            known = ", ".join(serving.filters) or "none"
            raise invalid("/filter", f"there is no filter of this name; there are: {known}")
        return named
    most = serving.settings.limits.tags
    for part in ("any_of", "all_of", "none_of"):
        if len(getattr(asked, part)) > most:
            raise invalid(f"/filter/{part}", f"at most {most} tags")
    return asked.tag_filter()


def to_members(answer: Recommendation) -> dict[str, Any]:
    """The members of `RecommendAnswer`."""
    slate, timings = answer.slate, answer.timings
    return {
        "recommendation_id": answer.recommendation_id,
        "model_version": slate.model_version,
        "catalog_version": slate.catalog_version,
        "beam_width": slate.beam_width,
        "source": slate.source,
        "degraded": slate.degraded,
        "reason": slate.reason,
        "items": [{"item_id": item.item_id, "score": item.score, "sid": item.sid} for item in slate.items],
        "took_ms": {
            "history": round(timings.history_s * 1000, 3),
            "features": round(timings.features_s * 1000, 3),
            "queue": round(timings.queue_s * 1000, 3),
            "inference": round(timings.inference_s * 1000, 3),
            "total": round(timings.total_s * 1000, 3),
        },
    }
