"""The logging policy: which item a visit shows next. Popularity, a noisy guess of what fits, sequels, exploration.

It never shows an item twice in a visit, and an item that the user has consumed only by exploration.

Shapes: n users whose visits go on, C candidates of each, I items.
"""

import numpy as np
import numpy.typing as npt

from model_export.data.simulator.behaviour import Behaviour
from model_export.data.simulator.items import Float, Int
from model_export.data.simulator.users import Interests, Traits

Bool = npt.NDArray[np.bool_]

POPULAR, RELEVANT, SEQUEL, EXPLORE = range(4)
NUM_RELEVANT = 8
NUM_POPULAR = 3
NUM_EXPLORED = 3
RELEVANT_SLOPE = 0.5
"""Within a topic, guesses are drawn by popularity to this power."""
SPREAD_WINDOW = 3
"""Positions in which an interest that had its turn waits for the others."""
NEAR_DUPLICATE = 3.0
"""What a guess loses where the visit has shown an item of the series, under a full `spread_share`."""
INTEREST_SLOPE = 0.5
"""Interests are drawn by strength to this power: the policy serves all of them."""
_CHOSEN = 1000.0


class LoggingPolicy:
    """Draws candidates from every source, and takes the best of the source whose turn it is; else of any other."""

    def __init__(self, behaviour: Behaviour, rng: np.random.Generator) -> None:
        self._behaviour, self._rng = behaviour, rng
        config, items = behaviour.config, behaviour.items
        explore_share = max(0.0, 1.0 - config.popular_share - config.relevant_share - config.sequel_share)
        shares = np.array([config.popular_share, config.relevant_share, config.sequel_share, explore_share])
        self._cumulative_source = np.cumsum(shares / shares.sum())
        self._cumulative_I = np.cumsum(items.popularity_I)
        self._by_topic_I = np.argsort(items.topic_I, kind="stable")
        self._sorted_topic_I = items.topic_I[self._by_topic_I]
        weight_I = items.popularity_I[self._by_topic_I] ** RELEVANT_SLOPE
        self._cumulative_in_topic = np.concatenate([[0.0], np.cumsum(weight_I)])

    def choose(
        self,
        traits: Traits,
        interests: Interests,
        *,
        last_consumed_n: Int,
        shown_nP: Int,
        barred: "Barred",
    ) -> Int:
        """The next item of each user; -1 where every candidate is barred.

        Args:
            traits: Of the users.
            interests: Of the users, now.
            last_consumed_n: Row of the item consumed last; -1: none yet.
            shown_nP: Rows of the items before this one in the visit.
            barred: Which candidates may not be shown.
        """
        source_n = np.searchsorted(self._cumulative_source, self._rng.random(len(last_consumed_n)), side="right")
        source_n = np.minimum(source_n, EXPLORE)
        next_n1 = np.where(last_consumed_n >= 0, self._behaviour.items.next_I[last_consumed_n], -1)[:, None]
        relevant_nC = self._relevant(interests, shown_nP)
        candidates = {
            SEQUEL: (next_n1, np.zeros(next_n1.shape)),
            RELEVANT: (relevant_nC, self._guess(traits, interests, relevant_nC, shown_nP)),
            POPULAR: self._in_order(self._draw(self._cumulative_I, (len(source_n), NUM_POPULAR))),
            EXPLORE: self._in_order(self._rng.integers(0, len(self._cumulative_I), (len(source_n), NUM_EXPLORED))),
        }
        best_n, best_score_n = np.full(len(source_n), -1), np.full(len(source_n), -np.inf)
        for source, (item_nC, score_nC) in candidates.items():
            # Where the source whose turn it is has nothing, the order is: a guess, what is popular, any.
            rank = {RELEVANT: 2, POPULAR: 1, SEQUEL: -1}.get(source, 0)
            bonus_n = _CHOSEN * np.where(source_n == source, 10, rank)
            barred_nC = barred.of(item_nC, allows_consumed_n=(source_n == source) & (source == EXPLORE))
            total_nC = np.where(barred_nC, -np.inf, bonus_n[:, None] + np.clip(score_nC, -_CHOSEN / 3, _CHOSEN / 3))
            place_n = total_nC.argmax(axis=1)
            top_n = total_nC[np.arange(len(place_n)), place_n]
            is_better_n = top_n > best_score_n
            best_n = np.where(is_better_n, item_nC[np.arange(len(place_n)), place_n], best_n)
            best_score_n = np.where(is_better_n, top_n, best_score_n)
        return best_n

    def _relevant(self, interests: Interests, shown_nP: Int) -> Int:
        """Items of one of each user's interests, mostly one that has not had its turn in the last few positions."""
        weight_nM = interests.strength_nM**INTEREST_SLOPE * (interests.topic_nM >= 0)
        spreads_n1 = (self._rng.random(len(weight_nM)) < self._behaviour.config.spread_share)[:, None]
        for window in range(1, 1 + min(SPREAD_WINDOW, shown_nP.shape[1])):
            topic_n = self._behaviour.items.topic_I[shown_nP[:, -window]]
            other_nM = weight_nM * (interests.topic_nM != topic_n[:, None])
            weight_nM = np.where(spreads_n1 & other_nM.any(axis=1, keepdims=True), other_nM, weight_nM)
        cumulative_nM = np.cumsum(weight_nM, axis=1)
        draw_n = self._rng.random(len(weight_nM)) * cumulative_nM[:, -1]
        place_n = np.minimum((cumulative_nM <= draw_n[:, None]).sum(axis=1), weight_nM.shape[1] - 1)
        topic_n = np.take_along_axis(interests.topic_nM, place_n[:, None], axis=1)[:, 0]
        low_n = self._cumulative_in_topic[np.searchsorted(self._sorted_topic_I, topic_n, side="left")]
        high_n = self._cumulative_in_topic[np.searchsorted(self._sorted_topic_I, topic_n, side="right")]
        draw_nC = low_n[:, None] + (high_n - low_n)[:, None] * self._rng.random((len(topic_n), NUM_RELEVANT))
        row_nC = np.searchsorted(self._cumulative_in_topic[1:], draw_nC, side="right")
        item_nC: Int = self._by_topic_I[np.minimum(row_nC, len(self._by_topic_I) - 1)]
        return item_nC

    def _guess(self, traits: Traits, interests: Interests, item_nC: Int, shown_nP: Int) -> Float:
        """What a feed that knows users well, but not exactly, would rank by; it steps back from series just shown."""
        config, series_I = self._behaviour.config, self._behaviour.items.series_I
        noise_nC = config.policy_noise * self._rng.gumbel(size=item_nC.shape)
        is_near_nC = (series_I[item_nC][:, :, None] == series_I[shown_nP][:, None, :]).any(axis=2)
        taste_nC = self._behaviour.taste(traits, interests, item_nC)
        guess_nC: Float = taste_nC + noise_nC - NEAR_DUPLICATE * config.spread_share * is_near_nC
        return guess_nC

    def _draw(self, cumulative_I: Float, shape: tuple[int, int]) -> Int:
        draw = self._rng.random(shape) * cumulative_I[-1]
        item: Int = np.minimum(np.searchsorted(cumulative_I, draw, side="right"), len(cumulative_I) - 1)
        return item

    @staticmethod
    def _in_order(item_nC: Int) -> tuple[Int, Float]:
        """The first candidate that is not barred."""
        return item_nC, np.broadcast_to(-np.arange(item_nC.shape[1], dtype=np.float64), item_nC.shape)


class Barred:
    """What may not be shown to n users now: nothing, twice in a visit, not yet published, or consumed before."""

    def __init__(self, behaviour: Behaviour, *, time_ms_n: Int, shown_nP: Int, user_n: Int, consumed_UI: Bool) -> None:
        self._published_ms_I = behaviour.items.published_ms_I
        self._time_ms_n, self._shown_nP, self._user_n, self._consumed_UI = time_ms_n, shown_nP, user_n, consumed_UI

    def of(self, item_nC: Int, *, allows_consumed_n: Bool) -> Bool:
        """Is each candidate barred?"""
        barred_nC = (item_nC < 0) | (self._published_ms_I[item_nC] > self._time_ms_n[:, None])
        barred_nC |= (item_nC[:, :, None] == self._shown_nP[:, None, :]).any(axis=2)
        consumed_nC = self._consumed_UI[self._user_n[:, None], item_nC]
        return barred_nC | (consumed_nC & ~allows_consumed_n[:, None])
