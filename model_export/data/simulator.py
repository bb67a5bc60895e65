"""The built-in simulator: a seeded event log of a made-up video service, in the columns of format `table`.

What can be learnt from it: a visit stays with a topic and drifts to its neighbours; whoever watches part 2 of a series
often watches part 3 next; a visit often goes on where the last one on the topic stopped; each user has two to four
interests; and some series are far more popular than others.
"""

import gzip
import random
from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Literal

import polars as pl

from model_export.data.simulator_topics import PARTS_PER_SERIES, SimulatedItem, items_frame, make_items

DAY_S = 86_400.0
MIN_PAUSE_BETWEEN_VISITS_S = 3_600.0
MAX_PAUSE_IN_VISIT_S = 90.0
TOPICS_PER_GROUP = 3
MAX_REDRAWS = 12


@dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    """Size and temper of the simulated log; the defaults give about 60,000 events."""

    num_items: int = 1000
    num_users: int = 1500
    num_days: int = 30
    mean_visits: float = 7.0
    """Visits of a user in the whole time; users differ widely."""
    mean_visit_length: float = 6.0
    """Items of a visit, at least two."""
    next_part_share: float = 0.45
    """Chance that the next item is the next part of the series."""
    drift_share: float = 0.12
    """Chance that the next item starts a neighbouring topic."""
    start_timestamp_s: float = 1_767_225_600.0
    """Unix time at which the log begins: 2026-01-01."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_items", "num_users", "num_days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("mean_visits", "mean_visit_length"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.next_part_share < 0 or self.drift_share < 0 or self.next_part_share + self.drift_share > 1:
            raise ValueError("next_part_share and drift_share must be shares that add up to at most 1")


@dataclass
class _Viewer:
    """A user's tastes and what they have watched."""

    interests: list[int]
    weights: list[float]
    hour: float
    patience: float
    seen: set[int] = field(default_factory=set)
    stopped_at: dict[int, int] = field(default_factory=dict)
    """Topic -> the row watched last in it."""


class _World:
    """The catalog by topic, and how a visit moves through it. Items are named by their row."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self.rng = random.Random(config.seed)
        self.items: list[SimulatedItem] = make_items(config.num_items, self.rng)
        self.rows_of: dict[int, list[int]] = {}
        for row, item in enumerate(self.items):
            self.rows_of.setdefault(item.topic, []).append(row)
        num_series = self.items[-1].series + 1
        appeal = [1.0 / (rank + 1) ** 0.7 for rank in range(num_series)]
        self.rng.shuffle(appeal)
        # A first part draws newcomers; later parts are mostly reached from the part before.
        self.cumulative_of = {
            topic: list(accumulate(appeal[self.items[row].series] / (1 + row % PARTS_PER_SERIES) for row in rows))
            for topic, rows in self.rows_of.items()
        }

    def new_viewer(self) -> _Viewer:
        rng = self.rng
        topics = sorted(self.rows_of)
        interests = rng.sample(topics, min(len(topics), rng.randint(2, 4)))
        return _Viewer(
            interests=interests,
            weights=[1.0 / (place + 1) for place in range(len(interests))],
            hour=rng.uniform(7.0, 23.0),
            patience=rng.uniform(0.5, 0.95),
        )

    def popular_row(self, topic: int) -> int:
        cumulative = self.cumulative_of[topic]
        return self.rows_of[topic][bisect(cumulative, self.rng.random() * cumulative[-1], hi=len(cumulative) - 1)]

    def next_part(self, row: int) -> int | None:
        following = row + 1
        is_same = following < len(self.items) and self.items[following].series == self.items[row].series
        return following if is_same else None

    def neighbours(self, topic: int) -> list[int]:
        """The other topics of the same group that have items."""
        first = topic - topic % TOPICS_PER_GROUP
        return [t for t in range(first, first + TOPICS_PER_GROUP) if t != topic and t in self.rows_of]

    def first_row(self, viewer: _Viewer) -> int:
        """A visit opens on one of the viewer's interests, often where the last visit to it stopped."""
        topic = self.rng.choices(viewer.interests, viewer.weights)[0]
        stopped = viewer.stopped_at.get(topic)
        following = None if stopped is None else self.next_part(stopped)
        if following is not None and following not in viewer.seen and self.rng.random() < 0.5:
            return following
        return self.unseen_row(viewer, topic)

    def next_row(self, viewer: _Viewer, row: int) -> int:
        draw = self.rng.random()
        following = self.next_part(row)
        if draw < self.config.next_part_share and following is not None and following not in viewer.seen:
            return following
        topic = self.items[row].topic
        if draw > 1 - self.config.drift_share:
            topic = self.rng.choice(self.neighbours(topic) or [topic])
        return self.unseen_row(viewer, topic)

    def unseen_row(self, viewer: _Viewer, topic: int) -> int:
        """A popular item of the topic that is new to the viewer; another of the group once all were watched."""
        for _ in range(MAX_REDRAWS):
            row = self.popular_row(topic)
            if row not in viewer.seen:
                return row
        for near in (topic, *self.neighbours(topic)):
            unseen = [row for row in self.rows_of[near] if row not in viewer.seen]
            if unseen:
                return self.rng.choice(unseen)
        return self.popular_row(topic)

    def visit_starts(self, viewer: _Viewer) -> list[float]:
        """Seconds since the log began, ascending; most visits are near the viewer's hour of the day."""
        rng, config = self.rng, self.config
        num_visits = max(1, min(round(rng.expovariate(1 / config.mean_visits)) + 1, 4 * round(config.mean_visits)))
        return sorted(
            (rng.randrange(config.num_days) + (rng.gauss(viewer.hour, 2.0) % 24.0) / 24.0) * DAY_S
            for _ in range(num_visits)
        )

    def reaction(self, viewer: _Viewer, row: int) -> tuple[str, float]:
        """Action and watch seconds: matching topics are watched longer and liked more."""
        rng, item = self.rng, self.items[row]
        fits = item.topic in viewer.interests
        share = min(1.0, max(0.03, rng.gauss(viewer.patience if fits else 0.4, 0.2)))
        watch_s = round(share * item.duration_s, 1)
        draw = rng.random()
        if share > 0.75 and draw < 0.04:
            return "share", watch_s
        if share > 0.75 and draw < 0.07:
            return "follow", watch_s
        if share > 0.6 and draw < 0.3:
            return "like", watch_s
        return "view", watch_s


def simulate(config: SimulatorConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events (`user_id, item_id, timestamp, action, value`) and items, in the columns of format `table`.

    The same configuration gives the same log. Events are in time order; `value` is watch time in seconds; one event
    per item watched, its action the strongest reaction (`view`, `like`, `follow`, `share`).
    """
    world = _World(config)
    rows: list[tuple[str, str, float, str, float]] = []
    for number in range(config.num_users):
        user_id = f"user-{number + 1:05d}"
        rows.extend((user_id, *event) for event in _watch(world, world.new_viewer()))
    columns = ("user_id", "item_id", "timestamp", "action", "value")
    events = pl.DataFrame(rows, schema=columns, orient="row").sort("timestamp", maintain_order=True)
    return events, items_frame(world.items)


def _watch(world: _World, viewer: _Viewer) -> list[tuple[str, float, str, float]]:
    """All visits of one viewer: item_id, timestamp, action and watch seconds of each event."""
    config, rng = world.config, world.rng
    events: list[tuple[str, float, str, float]] = []
    now_s = -MIN_PAUSE_BETWEEN_VISITS_S
    previous = -1
    for start_s in world.visit_starts(viewer):
        now_s = max(start_s, now_s + MIN_PAUSE_BETWEEN_VISITS_S)
        row = world.first_row(viewer)
        for _ in range(2 + int(rng.expovariate(1 / max(config.mean_visit_length - 2, 0.1)))):
            if now_s >= config.num_days * DAY_S:
                return events
            if row != previous:
                action, watch_s = world.reaction(viewer, row)
                events.append((world.items[row].item_id, round(config.start_timestamp_s + now_s, 3), action, watch_s))
                now_s += watch_s + rng.uniform(1.0, MAX_PAUSE_IN_VISIT_S)
                viewer.seen.add(row)
                viewer.stopped_at[world.items[row].topic] = row
                previous = row
            row = world.next_row(viewer, row)
    return events


def write_simulation(
    config: SimulatorConfig, out_dir: str | Path, *, kind: Literal["jsonl.gz", "parquet"] = "jsonl.gz"
) -> Path:
    """Write `events.*` and `items.*` as a user's own log would stand there; returns the folder for `prepare`."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(("events", "items"), simulate(config), strict=True):
        file = out_dir / f"{name}.{kind}"
        if kind == "parquet":
            frame.write_parquet(file)
        else:
            file.write_bytes(gzip.compress(frame.write_ndjson().encode(), mtime=0))
    return out_dir
