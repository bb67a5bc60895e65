"""The log's visits, of a batch of users in step: everyone's first visit, then everyone's second, item by item.

Shapes: U users of the batch, n those whose visit goes on, V their visits in order, R rows (impressions).
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from model_export.data.simulator.behaviour import Behaviour, Memory
from model_export.data.simulator.config import SimulatorConfig
from model_export.data.simulator.feed import Feed, Response
from model_export.data.simulator.items import DAY_MS, Float, Int
from model_export.data.simulator.policy import Barred, LoggingPolicy
from model_export.data.simulator.users import InterestDrift, Interests, Rows, Traits, make_traits

Bool = npt.NDArray[np.bool_]

MIN_PAUSE_MS = 3_600_000
"""Between a user's visits."""
SCROLL_S = (1.5, 6.0)
"""Between an item and the next: uniform between these."""
NEVER_MS = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class VisitTable(Rows):
    """All visits, by user and time, with the interests that the user had; times in milliseconds since the log began."""

    user_V: Int
    start_ms_V: Int
    topic_VM: Int
    subject_VM: Int
    strength_VM: Float


@dataclass(frozen=True, eq=False)
class ImpressionTable(Rows):
    """Everything that was shown, by visit and position."""

    visit_R: Int
    item_R: Int
    time_ms_R: Int
    click_R: Bool
    long_view_R: Bool
    like_R: Bool
    hide_R: Bool
    watch_s_R: Float


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What became of a batch of users."""

    traits: Traits
    visits: VisitTable
    impressions: ImpressionTable


def simulate_batch(behaviour: Behaviour, num_users: int, rng: np.random.Generator) -> Batch:
    """The visits of new users. Visits that would begin after the log's end do not happen."""
    config, items = behaviour.config, behaviour.items
    traits = make_traits(config, num_users, rng)
    crowd = _Crowd(behaviour, traits, InterestDrift(config, items, num_users, rng), rng)
    start_ms_UV = _planned_starts(config, num_users, rng)
    for round_number in range(start_ms_UV.shape[1]):
        crowd.visit(start_ms_UV[:, round_number])
    return crowd.finish()


def _planned_starts(config: SimulatorConfig, num_users: int, rng: np.random.Generator) -> Int:
    """Starts `[U, V]` in milliseconds since the log began, ascending, near each user's hour of the day; then never."""
    mean = config.mean_visits
    count_U = 1 + np.floor(rng.exponential(max(mean - 1, 0.0), num_users)).astype(np.int64)
    count_U = np.clip(count_U, 1, max(1, 4 * round(mean)))
    hour_U1 = rng.uniform(7.0, 23.0, (num_users, 1))
    shape = (num_users, int(count_U.max()))
    hour_UV = (hour_U1 + 2.0 * rng.standard_normal(shape)) % 24.0
    start_UV = ((rng.integers(0, config.num_days, shape) + hour_UV / 24.0) * DAY_MS).astype(np.int64)
    start_UV[np.arange(shape[1]) >= count_U[:, None]] = NEVER_MS
    return np.sort(start_UV, axis=1)


class _Crowd:
    """The state of a batch of users, and what was recorded of them."""

    def __init__(self, behaviour: Behaviour, traits: Traits, drift: InterestDrift, rng: np.random.Generator) -> None:
        num_users = len(traits.sensitivity_n)
        self._behaviour, self._traits, self._drift, self._rng = behaviour, traits, drift, rng
        self._policy = LoggingPolicy(behaviour, rng)
        self._memory = Memory(behaviour, num_users)
        self._consumed_UI = np.zeros((num_users, len(behaviour.items)), dtype=np.bool_)
        self._last_consumed_U = np.full(num_users, -1)
        self._started_ms_U = np.zeros(num_users, dtype=np.int64)
        self._free_ms_U = np.zeros(num_users, dtype=np.int64)
        self._visits: list[tuple[npt.NDArray[np.generic], ...]] = []
        self._impressions: list[tuple[npt.NDArray[np.generic], ...]] = []
        self._num_visits = 0

    def visit(self, planned_ms_U: Int) -> None:
        """One visit of everyone whose next one is planned and begins before the log's end."""
        start_ms_U = np.maximum(planned_ms_U, self._free_ms_U)
        user_n = np.flatnonzero(start_ms_U < self._behaviour.config.num_days * DAY_MS)
        start_ms_n = start_ms_U[user_n]
        self._drift.pass_time(user_n, (start_ms_n - self._started_ms_U[user_n]) / DAY_MS)
        self._started_ms_U[user_n] = start_ms_n
        interests = self._drift.now(user_n)
        visit_n = self._num_visits + np.arange(len(user_n))
        self._num_visits += len(user_n)
        self._visits.append((user_n, start_ms_n, interests.topic_nM, interests.subject_nM, interests.strength_nM))
        self._scroll(
            _Going(
                user_n=user_n,
                visit_n=visit_n,
                start_ms_n=start_ms_n,
                now_ms_n=start_ms_n,
                traits=self._traits.take(user_n),
                interests=interests,
            )
        )

    def _scroll(self, going: "_Going") -> None:
        """Everyone's visit, one position after the other, until they leave or nothing may be shown to them."""
        behaviour, feed = self._behaviour, Feed(self._behaviour, going.traits, self._rng)
        consumed: list[tuple[Int, Int, Int]] = []
        for _ in range(behaviour.config.max_shown):
            item_n = self._choose(going, feed.shown_nP)
            is_there_n = item_n >= 0
            feed.keep(is_there_n)
            going, item_n = going.take(np.flatnonzero(is_there_n)), item_n[is_there_n]
            if len(item_n) == 0:
                break
            response = feed.show(item_n, self._resting(going, item_n))
            self._record(going, item_n, response)
            is_click_n = response.click_n
            consumed.append((going.user_n[is_click_n], item_n[is_click_n], going.now_ms_n[is_click_n]))
            self._consumed_UI[going.user_n[is_click_n], item_n[is_click_n]] = True
            self._last_consumed_U[going.user_n[is_click_n]] = item_n[is_click_n]
            pause_s_n = response.watch_s_n + self._rng.uniform(*SCROLL_S, len(item_n))
            going = replace(going, now_ms_n=going.now_ms_n + np.round(1000 * pause_s_n).astype(np.int64))
            self._free_ms_U[going.user_n] = going.now_ms_n + MIN_PAUSE_MS
            feed.keep(response.stays_n)
            going = going.take(np.flatnonzero(response.stays_n))
        for mine in consumed:  # during a visit, what was shown in it works through the feed
            self._memory.add(*mine)

    def _choose(self, going: "_Going", shown_nP: Int) -> Int:
        barred = Barred(
            self._behaviour,
            time_ms_n=going.now_ms_n,
            shown_nP=shown_nP,
            user_n=going.user_n,
            consumed_UI=self._consumed_UI,
        )
        return self._policy.choose(
            going.traits,
            going.interests,
            last_consumed_n=self._last_consumed_U[going.user_n],
            shown_nP=shown_nP,
            barred=barred,
        )

    def _resting(self, going: "_Going", item_n: Int) -> Float:
        item_n1 = item_n[:, None]
        pressure = self._memory.pressure(going.user_n, going.start_ms_n, item_n1)
        strain = self._behaviour.strain(going.traits, item_n1, pressure)
        return (self._behaviour.taste(going.traits, going.interests, item_n1) - strain)[:, 0]

    def _record(self, going: "_Going", item_n: Int, response: Response) -> None:
        reactions = (response.click_n, response.long_view_n, response.like_n, response.hide_n, response.watch_s_n)
        self._impressions.append((going.visit_n, item_n, going.now_ms_n, *reactions))

    def finish(self) -> Batch:
        """Everything recorded: visits by user and time, impressions by visit and time."""
        visits = VisitTable(*(np.concatenate(column) for column in zip(*self._visits, strict=True)))
        order_V = np.lexsort((visits.start_ms_V, visits.user_V))
        place_V = np.empty(len(order_V), dtype=np.int64)
        place_V[order_V] = np.arange(len(order_V))
        impressions = ImpressionTable(*(np.concatenate(column) for column in zip(*self._impressions, strict=True)))
        impressions = replace(impressions, visit_R=place_V[impressions.visit_R])
        order_R = np.lexsort((impressions.time_ms_R, impressions.visit_R))
        return Batch(traits=self._traits, visits=visits.take(order_V), impressions=impressions.take(order_R))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Going(Rows):
    """Those whose visit goes on."""

    user_n: Int
    visit_n: Int
    start_ms_n: Int
    now_ms_n: Int
    traits: Traits
    interests: Interests
