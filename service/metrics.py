"""Every Prometheus metric, one list. Base units; never a user or an item id as a label."""

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from service.bundle import Manifest

STAGES: Final = ("history", "features", "queue", "inference", "total")
HISTORY_OPERATIONS: Final = ("read", "append", "delete", "remember", "some_users", "ping", "durability")
CATALOG_OPERATIONS: Final = ("follow", "adopt")
EVENT_OUTCOMES: Final = ("stored", "duplicate", "refused")
ITEM_OUTCOMES: Final = ("added", "changed", "removed", "refused", "rolled_back")
POPULARITIES: Final = ("cold", "other", "popular")
"""Of items, by their training events: none; some; as many as the catalog's most popular tenth."""
DIRECTIONS: Final = ("above", "below")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLATE_SECONDS = (*_SECONDS, 5.0, 10.0, 30.0, 60.0)
"""As far as deadlines go: a quantile beyond the last bucket is told as that bucket's bound, whatever it was."""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "oneslate_http_requests", "HTTP requests.", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "oneslate_http_request_seconds", "HTTP requests, first byte to last.", ["route"], buckets=_SLATE_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "oneslate_recommend_stage_seconds", "A slate's way, by stage passed.", ["stage"], buckets=_SLATE_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.slates = Counter("oneslate_slates", "Slates answered.", ["source", "reason"], registry=registry)
        self.batch_size = Histogram(
            "oneslate_batch_size_requests", "Requests in one run.", buckets=_SIZES, registry=registry
        )
        self.queue_depth = Gauge("oneslate_queue_depth_requests", "Requests that wait for a run.", registry=registry)
        self.beam_width = Gauge(
            "oneslate_beam_width_beams", "Beams of the last run: narrower while requests queue up.", registry=registry
        )
        self.batcher_restarts = Counter(
            "oneslate_batcher_restarts", "Workers of the batcher that died and were replaced.", registry=registry
        )
        self.events = Counter("oneslate_events", "Events received, by outcome.", ["outcome"], registry=registry)
        self.errors = Counter("oneslate_errors", "Problems answered, by type.", ["type"], registry=registry)
        self.key_file_current = Gauge(
            "oneslate_key_file_current", "0 while the file of API keys cannot be used as it is.", registry=registry
        )
        self.key_file_current.set(1)  # where there is none, nothing is wrong with it
        self.history_errors = Counter(
            "oneslate_history_errors", "Operations that the history store did not answer.", ["operation"],
            registry=registry,
        )  # fmt: skip
        self.stale_histories = Counter(
            "oneslate_stale_histories", "Slates made from a copy, because the history store did not answer.",
            registry=registry,
        )  # fmt: skip
        self.impressions_unlogged = Counter(
            "oneslate_impressions_unlogged", "Slates answered for which the event log had no room.", registry=registry
        )
        self.history_asked = Gauge(
            "oneslate_history_asked", "0 while the history store is left alone because it fails.", registry=registry
        )
        self.item_changes = Counter(
            "oneslate_item_changes", "Changes of items received here, by outcome.", ["outcome"], registry=registry
        )
        self.catalog_errors = Counter(
            "oneslate_catalog_log_errors", "Operations that the catalog's log did not answer.", ["operation"],
            registry=registry,
        )  # fmt: skip
        self.catalog_applied = Counter(
            "oneslate_catalog_changes_applied", "Changes of items that came through the log.", registry=registry
        )
        self.catalog_left_out = Counter(
            "oneslate_catalog_items_left_out", "New items for which the model's graph has no room.", registry=registry
        )
        self.catalog_merge_seconds = Histogram(
            "oneslate_catalog_merge_seconds", "Making the next snapshot of the catalog.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.catalog_visible_seconds = Histogram(
            "oneslate_catalog_visible_seconds", "From the log to the snapshot in service, the oldest change of each.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.catalog_items = Gauge(
            "oneslate_catalog_items", "Items of the snapshot in service, removed ones included.", registry=registry
        )
        self.catalog_followed = Gauge(
            "oneslate_catalog_followed_timestamp_seconds", "When the catalog's log was last read to its end.",
            registry=registry,
        )  # fmt: skip
        self.default_deadline = Gauge(
            "oneslate_default_deadline_seconds", "Of requests that bring none.", registry=registry
        )
        self.event_log_limit = Gauge(
            "oneslate_event_log_limit_rows", "Rows that may wait in the event log, in all; 0: none is kept.",
            registry=registry,
        )  # fmt: skip
        self.ready = Gauge("oneslate_ready", "1 when ready for traffic.", registry=registry)
        self.build = Gauge(
            "oneslate_build_info", "What runs; always 1.", ["version", "model_version", "provider"], registry=registry
        )
        self.model_errors = Counter(
            "oneslate_model_errors", "Models that could not be checked, loaded or looked up.", registry=registry
        )
        self.items_shown = Counter(
            "oneslate_items_shown", "Items in the model's slates, by their training events.", ["popularity"],
            registry=registry,
        )  # fmt: skip
        self.shown_lately = Gauge(
            "oneslate_catalog_shown_items", "Distinct items in the active model's slates of the last hour.",
            registry=registry,
        )  # fmt: skip
        self.available = Gauge(
            "oneslate_catalog_available_items", "Items of the snapshot in service that may be shown.", registry=registry
        )
        self.beam_entropy = Summary(
            "oneslate_slate_beam_entropy_nats", "Of the probabilities of the slates that the search kept.",
            registry=registry,
        )  # fmt: skip
        self.slates_compared = Counter(
            "oneslate_slates_compared", "Slates whose score per item was compared with the reference's.",
            registry=registry,
        )  # fmt: skip
        # A sum that may fall would look like a counter that begins anew: each direction has its own.
        self.score_shift = Counter(
            "oneslate_slate_score_shift_deviations",
            "Sum over these of the distance from the reference's mean, in the reference's deviations.", ["direction"],
            registry=registry,
        )  # fmt: skip
        self.reference_shown = Gauge(
            "oneslate_reference_shown_ratio", "Share of items in the reference's slates, by their training events.",
            ["popularity"], registry=registry,
        )  # fmt: skip
        for counter, values in (
            (self.history_errors, HISTORY_OPERATIONS), (self.catalog_errors, CATALOG_OPERATIONS),
            (self.events, EVENT_OUTCOMES), (self.item_changes, ITEM_OUTCOMES),
            (self.items_shown, POPULARITIES), (self.score_shift, DIRECTIONS),
        ):  # fmt: skip
            for value in values:
                counter.labels(value)
        self._stages = [self.stage_seconds.labels(stage) for stage in STAGES]

    def expect(self, slates: Iterable[tuple[str, str]], problems: Iterable[str]) -> None:
        """Shows counters from 0 on that else appear with the first trouble, of which no rate could be seen then.

        `slates`: sources and reasons; `problems`: types.
        """
        for source, reason in slates:
            self.slates.labels(source, reason)
        for code in problems:
            self.errors.labels(code)

    def observe_stages(self, seconds: tuple[float | None, ...]) -> None:
        """One slate's seconds, in the order of STAGES; None: it did not come so far."""
        for stage, value in zip(self._stages, seconds, strict=True):
            if value is not None:
                stage.observe(value)

    def model_active(self, package: str, manifest: Manifest, provider: str) -> None:
        """What runs from now on, and what its slates looked like at export, as far as its bundle says."""
        self.build.clear()
        self.build.labels(package, manifest.model_version, provider).set(1)
        self.reference_shown.clear()
        statistics = manifest.slate_statistics
        if "cold_share" in statistics and "popular_share" in statistics:
            cold, popular = statistics["cold_share"], statistics["popular_share"]
            for name, share in zip(POPULARITIES, (cold, 1 - cold - popular, popular), strict=True):
                self.reference_shown.labels(name).set(share)

    def watch(
        self,
        *,
        queue_depth: Callable[[], int],
        history_asked: Callable[[], bool],
        ready: Callable[[], bool],
        shown_lately: Callable[[], int],
        available: Callable[[], int],
    ) -> None:
        """Reads these when scraped."""
        self.shown_lately.set_function(shown_lately)
        self.available.set_function(available)
        self.queue_depth.set_function(queue_depth)
        self.history_asked.set_function(lambda: float(history_asked()))
        self.ready.set_function(lambda: float(ready()))

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
