"""`POST /v1/recommend`."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.answers import BatchAnswer, RecommendAnswer
from service.api.auth import Caller, admit
from service.api.body import invalid, read_json, read_part
from service.api.disconnects import ClientGone, while_connected
from service.api.openapi import OF_BODIES, json_body, problems
from service.api.replies import json_response, note
from service.api.requests import BatchBody, FilterBody, RecommendBody
from service.api.serving import Serving, serving_of
from service.bundle import Manifest
from service.catalog import TagFilter
from service.domain import SlateItem
from service.models import Model
from service.problems import OVERLOADED, problem_of
from service.query import RecommendQuery
from service.recommend import Recommendation

router = APIRouter(tags=["recommend"])


@router.post(
    "/v1/recommend",
    response_model=RecommendAnswer,
    responses=problems(*OF_BODIES, OVERLOADED, scope="recommend"),
    openapi_extra=json_body(RecommendBody),
)
async def recommend(request: Request) -> Response:
    """The user's next slate, within the deadline."""
    started_s = time.monotonic()
    caller, serving = admit(request, "recommend"), serving_of(request)
    body = await read_json(request, RecommendBody)
    model = _model_of(body, serving)
    query = to_query(body, model, serving, caller)
    try:
        with model.in_use():
            answer = await while_connected(request, model.recommender.recommend(query, started_s))
    except ClientGone:
        return Response(status_code=499)  # nobody reads it; it ends in the metrics
    return json_response(to_members(answer))


@router.post(
    "/v1/recommend/batch",
    response_model=BatchAnswer,
    responses=problems(*OF_BODIES, OVERLOADED, scope="recommend"),
    openapi_extra=json_body(BatchBody),
)
async def recommend_batch(request: Request) -> Response:
    """Slates of many users at once. Each request is read, admitted and answered by itself, and fails alone."""
    started_s = time.monotonic()
    caller, serving = admit(request, "recommend"), serving_of(request)
    bodies = (await read_json(request, BatchBody)).requests
    if len(bodies) > (most := serving.settings.limits.batch):
        raise invalid("/requests", f"at most {most} requests, not {len(bodies)}")

    async def one(place: int, body: object) -> dict[str, Any]:
        try:
            if place > 0:  # the first is paid for
                caller.spend()
            asked = read_part(body, RecommendBody)
            model = _model_of(asked, serving)
            query = to_query(asked, model, serving, caller)
            with model.in_use():
                answer = await model.recommender.recommend(query, started_s)
        except Exception as error:  # noqa: BLE001 - whatever it was, it fails this request and no other
            problem = problem_of(error).below(f"/requests/{place}")
            note(error, problem, serving.metrics)
            retry_after = problem.headers.get("Retry-After")
            return {
                "status": problem.type.status,
                "answer": None,
                "problem": problem.members(),
                "retry_after_s": None if retry_after is None else int(retry_after),
            }
        return {"status": 200, "answer": to_members(answer), "problem": None, "retry_after_s": None}

    async def every() -> list[dict[str, Any]]:
        return await asyncio.gather(*(one(place, body) for place, body in enumerate(bodies)))

    try:
        results = await while_connected(request, every())
    except ClientGone:
        return Response(status_code=499)
    return json_response({"results": results})


def _model_of(body: RecommendBody, serving: Serving) -> Model:
    """Which model answers: the one that is asked for, or the user's."""
    if body.model_version is None:
        return serving.models.of_user(body.user_id)
    loaded = {model.version: model for model in serving.models.loaded()}
    if body.model_version not in loaded:
        raise invalid("/model_version", f"not in service; there are: {', '.join(loaded)}")
    return loaded[body.model_version]


def to_query(body: RecommendBody, model: Model, serving: Serving, caller: Caller) -> RecommendQuery:
    """The query in the service's own words.

    Raises:
        ProblemError: the body asks more than the model or the limits give, names what does not exist, or a user that
            is not the caller's.
    """
    caller.check_user(body.user_id, "/user_id")
    manifest, limits = model.manifest, serving.settings.limits
    actions = manifest.action_numbers
    if body.slate_size > manifest.slate_size:
        raise invalid("/slate_size", f"this model's slates have at most {manifest.slate_size} items")
    if body.num_slates > manifest.beam_width:
        raise invalid("/num_slates", f"this model writes {manifest.beam_width} slates at a time")
    widest = limits.widest_beam(manifest)
    if body.beam_width is not None and body.beam_width > widest:
        raise invalid("/beam_width", f"at most {widest} beams")
    _check_graphs(body, manifest)
    if body.continue_from is not None and not serving.settings.history.shown_ttl_s:
        raise invalid("/continue_from", "this service does not keep what was shown")
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
        num_slates=body.num_slates,
        beam_width=None if body.beam_width is None else max(body.beam_width, body.num_slates),
        history=history,
        exclude=body.exclude,
        exclude_seen=body.exclude_seen,
        seen_actions=None if body.seen_actions is None else frozenset(body.seen_actions),
        tag_filter=_filter(body.filter, serving),
        # A cap that the slate cannot reach is none; so every cap fits the graph's 32 bits.
        max_per_group=0 if (body.max_per_group or 0) >= body.slate_size else body.max_per_group or 0,
        diversity=body.diversity,
        temperature=1.0 if body.temperature is None and body.seed is not None else body.temperature,
        seed=_seed(body),
        continue_from=body.continue_from,
        explain=body.explain,
        deadline_ms=serving.settings.deadline_ms if body.deadline_ms is None else body.deadline_ms,
        tenant=caller.name,
    )


def _seed(body: RecommendBody) -> int:
    """Of a slate that is drawn; one that is not needs none."""
    if body.seed is not None or body.temperature is None:
        return body.seed or 0
    return secrets.randbits(32)


def _check_graphs(body: RecommendBody, manifest: Manifest) -> None:
    """Refuses what takes a graph that the bundle does not have."""
    if body.explain and "explain" not in manifest.graphs:
        raise invalid("/explain", "this model was exported without the graph that explains")
    for name in ("temperature", "seed"):
        if getattr(body, name) is not None and "sampler" not in manifest.graphs:
            raise invalid(f"/{name}", "this model was exported without the graph that draws slates")


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


def _items(items: Sequence[SlateItem]) -> list[dict[str, Any]]:
    return [{"item_id": item.item_id, "score": item.score, "sid": item.sid} for item in items]


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
        "items": _items(slate.items),
        "score": slate.score,
        "reward": slate.reward,
        "propensity": slate.propensity,
        "seed": slate.seed,
        "alternatives": [
            {"items": _items(other.items), "score": other.score, "reward": other.reward} for other in slate.alternatives
        ],
        "explanation": None if slate.explanation is None else [asdict(item) for item in slate.explanation],
        "took_ms": {
            "history": round(timings.history_s * 1000, 3),
            "features": round(timings.features_s * 1000, 3),
            "queue": round(timings.queue_s * 1000, 3),
            "inference": round(timings.inference_s * 1000, 3),
            "total": round(timings.total_s * 1000, 3),
        },
    }
