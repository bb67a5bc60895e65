"""Everything that can be set about the service, read from the environment at the root only.

Names are `ONESLATE_<FIELD>`, parts of a group joined by two underscores: `ONESLATE_HISTORY__URL`. A name that means
nothing is an error. What the model determines stands in the bundle's manifest and cannot be set.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from service.bundle import Manifest
from service.catalog import TagFilter
from service.logs import LogFormat, LogLevel

_PREFIX = "ONESLATE_"
_OF_OTHERS = frozenset({"ONESLATE_REQUIRE_DATA", "ONESLATE_KEY"})
"""Names with our prefix that are read elsewhere: by the test suite, and by clients of a service with keys."""


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HistorySettings(_Group):
    """Where user histories live and how much of them is kept."""

    url: SecretStr | None = None
    """`redis://`, `rediss://`, `unix://`, `redis+cluster://`, `rediss+cluster://`, or `memory://`, which forgets all
    at the end of the process."""
    data_dir: Path | None = None
    """Directory of an embedded Redis, started if it does not run; instead of `url`."""
    fsync: Literal["always", "everysec"] = "everysec"
    """Of the embedded Redis: when an acknowledged event is on disk."""
    num_entries: int = Field(default=256, ge=1, le=65_536)
    """Newest events kept per user."""
    num_seen: int = Field(default=1024, ge=1, le=65_536)
    """Last distinct (item, action) pairs kept per user, for `exclude_seen`."""
    max_age_days: int = Field(default=365, ge=1, le=36_500)
    shown_ttl_s: int = Field(default=3600, ge=0, le=7 * 86_400)
    """How long the slates that a user was shown are kept after the last of them, for `continue_from`; 0: not at all."""
    shown_bytes: int = Field(default=4096, ge=512, le=1_000_000)
    """Of them the newest, up to so many bytes per user: 33 for a slate and 8 for each of its items."""
    stale_s: float = Field(default=60.0, ge=0, le=60)
    """How old a copy of a history in this process may be that stands in while the store does not answer; 0: none."""
    copy_bytes: int = Field(default=64_000_000, ge=0)
    """Of all copies together."""
    connect_timeout_ms: int = Field(default=50, ge=1, le=60_000)
    read_timeout_ms: int = Field(default=50, ge=1, le=60_000)
    max_connections: int = Field(default=64, ge=1, le=4096)

    @model_validator(mode="after")
    def _one_place(self) -> "HistorySettings":
        if self.url is not None and self.data_dir is not None:
            raise ValueError("give url or data_dir, not both")
        return self


class EventLogSettings(_Group):
    """The log of what users were shown and did, for `oneslate collect`."""

    max_rows: int = Field(default=0, ge=0)
    """Rows that wait in Redis for a collector at most, 256 streams with an equal share each: where one is full, events
    are refused and slates are not logged. 0: there is no log."""


class CatalogSettings(_Group):
    """How changes of items come into service. Their log is kept where histories are."""

    poll_ms: float = Field(default=100.0, ge=1, le=60_000)
    """How often the log is asked for news."""
    merge_ms: float = Field(default=250.0, ge=1, le=60_000)
    """From one snapshot to the next, at least."""
    log_entries: int = Field(default=10_000, ge=100, le=10_000_000)
    """Entries that the log keeps; a replica that misses more reads the whole catalog again."""
    read_timeout_ms: int = Field(default=2000, ge=1, le=60_000)
    """For one reply of the log."""


class BatchSettings(_Group):
    """How requests are grouped into runs."""

    max_size: int = Field(default=32, ge=1, le=1024)
    """Most requests of one run."""
    max_wait_ms: float = Field(default=0.0, ge=0, le=1000)
    """How long an idle worker waits for company; 0: it starts at once."""
    queue_limit: int = Field(default=256, ge=1, le=100_000)
    """Most requests that wait; further ones are answered 429, as are those that the queue would make late."""
    narrow_to: float = Field(default=0.25, gt=0, le=1)
    """How narrow beams become while more than one batch waits, as a share of the model's; 1: they stay as they are."""
    stuck_s: float = Field(default=30.0, gt=0)
    """A run that takes longer makes the service not ready."""

    def min_beam_width(self, beam_width: int) -> int:
        """The narrowest of a model with beams so wide."""
        return max(1, round(beam_width * self.narrow_to))


class LimitSettings(_Group):
    """How much one request may ask."""

    connections: int = Field(default=4096, ge=1)
    """Open at once."""
    read_s: float = Field(default=10.0, gt=0)
    """Seconds for a whole request to come, from its first byte or from the connection's beginning; and for a client to
    take an answer that waits for it."""
    head_bytes: int = Field(default=65_536, ge=1024)
    """Of the request line and the headers."""
    body_bytes: int = Field(default=1_000_000, ge=1024)
    exclude: int = Field(default=1000, ge=1)
    """Item ids in `exclude`."""
    history: int = Field(default=1000, ge=1)
    """Events in `history`."""
    batch: int = Field(default=64, ge=1)
    """Requests in one `POST /v1/recommend/batch`."""
    events: int = Field(default=1000, ge=1)
    """Events in one `POST /v1/events`."""
    items: int = Field(default=1000, ge=1)
    """Items in one `POST /v1/items`."""
    tags: int = Field(default=100, ge=1)
    """Tags in each part of a filter."""
    beam_width: int = Field(default=128, ge=1)
    """Beams that a request may name; the model's own width may be above that."""

    def widest_beam(self, manifest: Manifest) -> int:
        """Of this model, by request."""
        return min(self.beam_width, manifest.max_beam_width)


class FakeSettings(_Group):
    """The fake runner."""

    num_items: int = Field(default=1000, ge=1, le=32_768)
    """Items of its own catalog, when no bundle is given."""
    service_time_ms: float = Field(default=0.0, ge=0)
    """What every run takes at least."""


class FilterSettings(_Group):
    """A named filter."""

    any_of: frozenset[str] = frozenset()
    all_of: frozenset[str] = frozenset()
    none_of: frozenset[str] = frozenset()

    @model_validator(mode="after")
    def _says_something(self) -> "FilterSettings":
        self.tag_filter()
        return self

    def tag_filter(self) -> TagFilter:
        """The filter itself."""
        return TagFilter(any_of=self.any_of, all_of=self.all_of, none_of=self.none_of)


class CollectSettings(BaseSettings):
    """What the service and the collector of its event log both read. `load()` reads the environment."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    history: HistorySettings = HistorySettings()
    log_level: LogLevel = "info"
    log_format: LogFormat = "json"

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Reads the environment; `overrides` win over it.

        Raises:
            ValueError: a name that means nothing or a value that cannot be; one line that names it.
        """
        _refuse_unknown_names(os.environ)
        try:
            return cls(**overrides)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = _PREFIX + "__".join(str(part).upper() for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{name}: {message}" if first["loc"] else message) from error
        except SettingsError as error:  # a group or a dictionary that is not JSON
            raise ValueError(f"{error}: it must be JSON") from error


class Settings(CollectSettings):
    """The service's settings. `Settings.load()` reads the environment."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    """0: any free port."""
    bundle: Path | None = None
    """Directory of the bundle to serve."""
    models_dir: Path | None = None
    """Folder of bundles, each a folder of its own, that may be activated while the service runs."""
    runner: Literal["auto", "onnx", "openvino", "fake"] = "onnx"
    """`onnx`: ONNX Runtime. `openvino`: OpenVINO (its own extra). `auto`:
    what was fastest when the bundle was exported, if it loads here. `fake`: no model; without a bundle, a small catalog
    of its own. For tests and for measuring HTTP."""
    provider: Literal["cpu", "cuda"] = "cpu"
    """Where ONNX Runtime computes. `cuda` needs the extra `[gpu]`; without a working GPU the service does not start."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network; `bfloat16` with `openvino` alone, where it is faster on CPUs that have it."""
    load_graphs: Literal["start", "first_use"] = "start"
    """When graphs beside the generator's are loaded (each takes memory and, of a large model, seconds): before the
    service is ready, or when a request first needs one, which then may find its time over; others do not wait."""
    intra_op_threads: int = Field(default=0, ge=0)
    """Threads of one run; 0: as many as there are physical cores."""
    deadline_ms: float = Field(default=500.0, ge=1, le=60_000)
    """For requests that bring none."""
    keys_file: Path | None = None
    """JSON file of API keys (`oneslate keys new`), read again when it changes; without it everybody may everything."""
    allow_anonymous: bool = False
    """Serve beyond loopback without keys: in a private network, or behind something that knows who calls."""
    event_log: EventLogSettings = EventLogSettings()
    catalog: CatalogSettings = CatalogSettings()
    batch: BatchSettings = BatchSettings()
    limits: LimitSettings = LimitSettings()
    fake: FakeSettings = FakeSettings()
    filters: dict[str, FilterSettings] = Field(default_factory=dict)
    """Named filters, as JSON: `{"kids": {"any_of": ["Children"]}}`."""
    drain_s: float = Field(default=5.0, ge=0)
    """How long a shutdown waits for what is in flight."""

    @model_validator(mode="after")
    def _something_to_serve(self) -> "Settings":
        if self.runner != "fake" and self.bundle is None:
            raise ValueError(f"{_PREFIX}BUNDLE must name the directory of a bundle")
        if self.precision != "float32" and self.runner != "openvino":
            raise ValueError(f"{_PREFIX}PRECISION={self.precision} needs {_PREFIX}RUNNER=openvino")
        if self.provider != "cpu" and self.runner != "onnx":
            raise ValueError(f"{_PREFIX}PROVIDER={self.provider} needs {_PREFIX}RUNNER=onnx")
        return self

    @model_validator(mode="after")
    def _nobody_unknown_from_afar(self) -> "Settings":
        if self.keys_file is None and not self.allow_anonymous and not _is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from other machines, and without keys everybody there may read and change "
                f"everything: set {_PREFIX}KEYS_FILE (`oneslate keys new` makes one), or {_PREFIX}ALLOW_ANONYMOUS=true"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refuse_unknown_names(environment: Mapping[str, str]) -> None:
    known = set(_names(Settings, _PREFIX))
    for name in environment:
        if not name.upper().startswith(_PREFIX) or name.upper() in known | _OF_OTHERS:
            continue
        if any(name.upper().startswith(f"{_PREFIX}{group}__") for group in ("FILTERS",)):
            continue
        nearest = difflib.get_close_matches(name.upper(), known, n=1)
        raise ValueError(f"unknown setting {name}" + (f"; did you mean {nearest[0]}?" if nearest else ""))


def _names(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name.upper()}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Group):
            yield from _names(field.annotation, f"{prefix}{name.upper()}__")
