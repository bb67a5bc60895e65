"""What operators and orchestrators ask."""

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from service.api.answers import LiveAnswer, ReadyAnswer, VersionAnswer
from service.api.openapi import problems
from service.api.replies import json_response
from service.api.serving import Serving, serving_of
from service.errors import HistoryUnavailable
from service.problems import NOT_READY
from service.version import package_version

router = APIRouter(tags=["operations"])

_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format"}
}


def _not_ready() -> dict[int | str, dict[str, Any]]:
    """503 says why in the same form as 200, unless the connection is one too many."""
    described = problems()[503]
    return {503: {**described, "model": ReadyAnswer, "description": f"Not ready; {described['description']}"}}


@router.get("/livez", response_model=LiveAnswer, responses=problems())
async def live() -> Response:
    """The process answers."""
    return json_response({"status": "ok"})


@router.get("/readyz", response_model=ReadyAnswer, responses=problems() | _not_ready())
async def ready(request: Request) -> Response:
    """Whether requests should come here, with reasons by name."""
    serving: Serving | None = request.app.state.serving
    if serving is None:
        return json_response({"status": "not_ready", "reasons": ["starting"], "degraded": []}, 503)
    reasons = serving.not_ready_reasons()
    degraded = []
    try:
        await serving.store.ping()
    except HistoryUnavailable:
        serving.metrics.history_errors.labels("ping").inc()
        degraded.append("history_unavailable")
    if serving.models.missing is not None:
        degraded.append("model_not_loaded")
    if not serving.canary_is_well():
        degraded.append("canary_unwell")
    answer = {"status": "not_ready" if reasons else "ready", "reasons": reasons, "degraded": degraded}
    return json_response(answer, 503 if reasons else 200)


@router.get("/metrics", response_class=Response, responses=problems() | _METRICS)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(request.app.state.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/version", response_model=VersionAnswer, responses=problems(NOT_READY))
async def version(request: Request) -> Response:
    """The service, the model, the catalog, and what an acknowledgement is worth."""
    serving = serving_of(request)
    model = serving.model
    manifest, snapshot = model.manifest, model.catalog()
    try:
        durability = await serving.store.durability()
    except HistoryUnavailable:
        serving.metrics.history_errors.labels("durability").inc()
        durability = "unknown"
    return json_response(
        {
            "version": package_version(),
            "model_version": manifest.model_version,
            "catalog_version": snapshot.version,
            "num_items": snapshot.num_items,
            "provider": model.runner.provider,
            "precision": model.runner.precision,
            "slate_size": manifest.slate_size,
            "beam_width": manifest.beam_width,
            "max_beam_width": serving.settings.limits.widest_beam(manifest),
            "actions": list(manifest.action_numbers),
            "filters": sorted(serving.filters),
            "durability": durability,
        }
    )
