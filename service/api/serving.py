"""What is in service while the application runs: made by the lifespan, used by the routes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from service.api.answers import NotReadyReason
from service.catalog import CatalogSnapshot, LiveCatalog, TagFilter
from service.history import HistoryStore
from service.inference.batcher import Batcher
from service.inference.runner import Runner
from service.items import ItemWriter
from service.metrics import Metrics
from service.problems import NOT_READY, Problem, ProblemError
from service.recommend import Recommender
from service.settings import Settings


@dataclass(slots=True, kw_only=True)
class Serving:
    """Everything a route needs."""

    settings: Settings
    runner: Runner
    live: LiveCatalog
    items: ItemWriter
    store: HistoryStore
    batcher: Batcher
    recommender: Recommender
    metrics: Metrics
    filters: Mapping[str, TagFilter] = field(default_factory=dict)
    """Named filters."""
    stopping: bool = False

    def catalog(self) -> CatalogSnapshot:
        """The snapshot in service now."""
        return self.live.snapshot

    def not_ready_reasons(self) -> list[NotReadyReason]:
        """Why no request should come here; empty when ready."""
        reasons: list[NotReadyReason] = []
        if self.stopping:
            reasons.append("stopping")
        if not self.batcher.alive:
            reasons.append("inference_worker_gone")
        if self.batcher.running_s > self.settings.batch.stuck_s:
            reasons.append("inference_stuck")
        return reasons


def serving_of(request: Request) -> Serving:
    """What is in service.

    Raises:
        ProblemError: nothing yet, or nothing any more.
    """
    serving: Serving | None = request.app.state.serving
    if serving is None:
        raise ProblemError(Problem(NOT_READY, "The service is starting or stopping."))
    return serving
