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
from service.version import package_version

router = APIRouter(tags=["operations"])

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ReadyAnswer, "description": "Not ready"}}
_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format"}
}


@router.get("/livez", response_model=LiveAnswer)
async def live() -> Response:
    """The process answers."""
    return json_response({"status": "ok"})


@router.get("/readyz", response_model=ReadyAnswer, responses=_NOT_READY)
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


@router.get("/metrics", response_class=Response, responses=_METRICS)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(request.app.state.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/version", response_model=VersionAnswer, responses=problems(503))
async def what_runs(request: Request) -> Response:
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
            "actions": list(manifest.action_numbers),
            "filters": sorted(serving.filters),
            "durability": durability,
        }
    )
