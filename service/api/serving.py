"""What is in service while the application runs: made by the lifespan, used by the routes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from service.api.answers import NotReadyReason
from service.api.crowding import CROWDED_S, LoopLag
from service.catalog import CatalogSnapshot, TagFilter
from service.history import HistoryStore, ShownRecorder
from service.keys import KeyRing
from service.metrics import Metrics
from service.models import Model, Models
from service.problems import NOT_READY, Problem, ProblemError
from service.settings import Settings


@dataclass(slots=True, kw_only=True)
class Serving:
    """Everything a route needs."""

    settings: Settings
    models: Models
    store: HistoryStore
    metrics: Metrics
    shown: ShownRecorder | None = None
    """Writes what was shown; None: nobody does."""
    keys: KeyRing | None = None
    """Who may call; None: everybody."""
    lag: LoopLag = field(default_factory=LoopLag)
    """Of the event loop."""
    filters: Mapping[str, TagFilter] = field(default_factory=dict)
    """Named filters."""
    stopping: bool = False

    @property
    def model(self) -> Model:
        """The one in service now; a request asks once, and goes on with what it got."""
        return self.models.active

    def find(self, item_id: str) -> tuple[CatalogSnapshot, int | None]:
        """A catalog in service that holds the item, and its row there; None: no model's does, or it is removed."""
        for model in self.models.loaded():
            snapshot = model.catalog()
            row = snapshot.row_of(item_id)
            if row is not None and not snapshot.items[row].removed:
                return snapshot, row
        return self.model.catalog(), None

    def is_crowded(self) -> bool:
        """Whether the event loop is behind, and not for once, but because requests queue up."""
        most = self.settings.batch.max_size
        return self.lag.lag_s > CROWDED_S and self.model.batcher.queue_depth >= most

    def not_ready_reasons(self) -> list[NotReadyReason]:
        """Why no request should come here; empty when ready."""
        reasons: list[NotReadyReason] = []
        if self.stopping:
            reasons.append("stopping")
        # Of the active model alone: all replicas have the same canary, and one of its inputs must not take all of them.
        if not self.model.batcher.alive:
            reasons.append("inference_worker_gone")
        if self.model.batcher.running_s > self.settings.batch.stuck_s:
            reasons.append("inference_stuck")
        return reasons

    def canary_is_well(self) -> bool:
        """Whether the model that some users try answers."""
        canary = self.models.canary
        return canary is None or (canary.batcher.alive and canary.batcher.running_s <= self.settings.batch.stuck_s)


def serving_of(request: Request) -> Serving:
    """What is in service.

    Raises:
        ProblemError: nothing yet, or nothing any more.
    """
    serving: Serving | None = request.app.state.serving
    if serving is None:
        raise ProblemError(Problem(NOT_READY, "The service is starting or stopping."))
    return serving
