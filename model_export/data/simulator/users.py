"""Users: several interests at once whose strengths drift, and the traits that never change.

Shapes: U all users, n some of them, M interests, F ways to treat a subject, C items of each.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from model_export.data.simulator.config import SimulatorConfig
from model_export.data.simulator.items import Float, Int, SimulatedItems
from model_export.data.simulator.topics import FRAMES

NUM_INTERESTS = 4
MIN_INTERESTS = 2
MEAN_LOG_STRENGTH_M = np.array([0.0, -0.3, -0.6, -0.9])
"""Where the logarithms of the interests' strengths return to."""
NEARBY_SHARE = 0.6
"""Share of new interests that lie in the group of an old one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Arrays with one row per user, or such rows again."""

    def take(self, row_n: Int) -> Self:
        """The same of these rows."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        taken = {name: value.take(row_n) if isinstance(value, Rows) else value[row_n] for name, value in values.items()}
        return type(self)(**taken)


@dataclass(frozen=True, kw_only=True, eq=False)
class Traits(Rows):
    """What never changes."""

    style_nF: Float
    """Liking for each way to treat a subject, in logits."""
    sensitivity_n: Float
    """Factor on fatigue, around 1."""
    stay_skipped_n: Float
    """Chance to go on after an item that was passed over."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Interests(Rows):
    """What a user is after at one moment. Topics differ; a place without an interest has topic and subject -1."""

    topic_nM: Int
    subject_nM: Int
    strength_nM: Float
    """0 where there is none."""


def make_traits(config: SimulatorConfig, num_users: int, rng: np.random.Generator) -> Traits:
    """Traits of new users."""
    stay_U = config.stay_skipped + 0.03 * rng.standard_normal(num_users)
    return Traits(
        style_nF=config.style_spread * rng.standard_normal((num_users, len(FRAMES))),
        sensitivity_n=np.exp(config.sensitivity_spread * rng.standard_normal(num_users)),
        stay_skipped_n=np.clip(stay_U, 0.0, 1.0) if config.stay_skipped < 1 else np.ones(num_users),
    )


class InterestDrift:
    """A batch of users' interests through time: strengths wander around their means, weak interests are swapped."""

    def __init__(
        self, config: SimulatorConfig, items: SimulatedItems, num_users: int, rng: np.random.Generator
    ) -> None:
        self._config, self._items, self._rng = config, items, rng
        self._topics = np.unique(items.topic_I)
        self._by_topic = np.argsort(items.topic_I, kind="stable")
        self._start_T = np.searchsorted(items.topic_I[self._by_topic], np.arange(len(items.satiety_T) + 1))
        num_places = min(NUM_INTERESTS, len(self._topics))
        order = np.argsort(rng.random((num_users, len(self._topics))), axis=1)[:, :num_places]
        count_U = rng.integers(MIN_INTERESTS, NUM_INTERESTS + 1, num_users)
        is_there = np.arange(num_places) < count_U[:, None]
        self.topic_UM = np.full((num_users, NUM_INTERESTS), -1)
        self.topic_UM[:, :num_places] = np.where(is_there, self._topics[order], -1)
        self.subject_UM = np.where(self.topic_UM >= 0, self._subject_of(self.topic_UM), -1)
        self.log_strength_UM = MEAN_LOG_STRENGTH_M + config.drift_spread * rng.standard_normal(self.topic_UM.shape)

    def pass_time(self, user_n: Int, days_n: Float) -> None:
        """So many days go by for these users (each named once)."""
        config = self._config
        keep_n = np.exp(-days_n / config.drift_days)[:, None]
        spread_n = config.drift_spread * np.sqrt(1 - keep_n**2)
        wander = spread_n * self._rng.standard_normal((len(user_n), NUM_INTERESTS))
        away_nM = self.log_strength_UM[user_n] - MEAN_LOG_STRENGTH_M
        self.log_strength_UM[user_n] = MEAN_LOG_STRENGTH_M + keep_n * away_nM + wander
        swaps = self._rng.random(len(user_n)) < 1 - np.exp(-days_n * config.swaps_per_day)
        self._swap_weakest(user_n[swaps])

    def now(self, user_n: Int) -> Interests:
        """The interests of these users."""
        topic_nM = self.topic_UM[user_n]
        return Interests(
            topic_nM=topic_nM,
            subject_nM=self.subject_UM[user_n],
            strength_nM=np.where(topic_nM >= 0, np.exp(self.log_strength_UM[user_n]), 0.0),
        )

    def _swap_weakest(self, user_n: Int) -> None:
        """The weakest interest gives way to a new topic, often near the strongest; a known one changes nothing."""
        topic_nM = self.topic_UM[user_n]
        strength_nM = np.where(topic_nM >= 0, self.log_strength_UM[user_n], np.inf)
        place_n = strength_nM.argmin(axis=1)
        strongest_n = np.where(topic_nM >= 0, self.log_strength_UM[user_n], -np.inf).argmax(axis=1)
        group_T = self._items.group_I[self._by_topic[np.minimum(self._start_T[:-1], len(self._items) - 1)]]
        favourite_n = topic_nM[np.arange(len(user_n)), strongest_n]
        is_near_nT = group_T[favourite_n][:, None] == group_T[self._topics]
        is_near_nT &= self._rng.random((len(user_n), 1)) < NEARBY_SHARE
        draw_nT = self._rng.random((len(user_n), len(self._topics))) + is_near_nT
        new_n = self._topics[draw_nT.argmax(axis=1)]
        is_new_n = (topic_nM != new_n[:, None]).all(axis=1)
        user_n, place_n, new_n = user_n[is_new_n], place_n[is_new_n], new_n[is_new_n]
        self.topic_UM[user_n, place_n] = new_n
        self.subject_UM[user_n, place_n] = self._subject_of(new_n)

    def _subject_of(self, topic: Int) -> Int:
        """A subject of each topic that has items."""
        first, num = self._start_T[topic], self._start_T[topic + 1] - self._start_T[topic]
        place = first + (self._rng.random(topic.shape) * num).astype(np.int64)
        return self._items.subject_I[self._by_topic[np.minimum(place, len(self._items) - 1)]]
