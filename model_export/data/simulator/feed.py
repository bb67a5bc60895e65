"""One visit of many users at once, item by item: what the log is drawn with, and what Monte Carlo checks replay.

Shapes: n users, P items shown so far.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_export.data.simulator.behaviour import LONG_SHARE, SHORT_SHARE, Behaviour, Pressure
from model_export.data.simulator.items import Float, Int
from model_export.data.simulator.users import Traits

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """What users did about the item that they were shown."""

    click_n: Bool
    long_view_n: Bool
    like_n: Bool
    hide_n: Bool
    watch_s_n: Float
    """0 without a click."""
    stays_n: Bool
    """The user looks at the next item."""

    def reward(self, behaviour: Behaviour) -> Float:
        """The reward `[n]` of what happened, by the weights whose expectation `Behaviour.value` is."""
        config = behaviour.config
        reward_n: Float = (
            config.reward_click * self.click_n
            + config.reward_long_view * self.long_view_n
            + config.reward_like * self.like_n
            + config.reward_hide * self.hide_n
            + config.reward_watch_min * self.watch_s_n / 60.0
        )
        return reward_n


class Feed:
    """The visits of n users that go on in step; each `show` is one more position."""

    def __init__(self, behaviour: Behaviour, traits: Traits, rng: np.random.Generator) -> None:
        self._behaviour, self._traits, self._rng = behaviour, traits, rng
        self.shown_nP: Int = np.empty((len(traits.sensitivity_n), 0), dtype=np.int64)

    def keep(self, is_kept_n: Bool) -> None:
        """Only these users go on."""
        self._traits = self._traits.take(np.flatnonzero(is_kept_n))
        self.shown_nP = self.shown_nP[is_kept_n]

    def logit(self, item_n: Int, resting_n: Float) -> Float:
        """Log-odds of a click if this item came next."""
        behaviour, position = self._behaviour, self.shown_nP.shape[1]
        nearness_P = np.power(behaviour.config.spacing, np.arange(position - 1, -1, -1))
        each = behaviour.pressure(self.shown_nP, item_n[:, None])
        pressure = Pressure(
            fatigue=(each.fatigue * nearness_P).sum(axis=1), appetite=(each.appetite * nearness_P).sum(axis=1)
        )
        strain_n = behaviour.strain(self._traits, item_n, pressure)
        logit_n: Float = resting_n - strain_n - behaviour.config.position_drop * position
        return logit_n

    def show(self, item_n: Int, resting_n: Float) -> Response:
        """Everyone sees an item and reacts."""
        behaviour, config = self._behaviour, self._behaviour.config
        chance = behaviour.reaction(self.logit(item_n, resting_n))
        draw = self._rng.random((6, len(item_n)))
        click_n = draw[0] < chance.click
        long_view_n = click_n & (draw[1] < chance.long_view)
        like_n = long_view_n & (draw[2] < chance.like)
        hide_n = ~click_n & (draw[3] < chance.hide)
        low_n = np.where(long_view_n, LONG_SHARE[0], SHORT_SHARE[0])
        high_n = np.where(long_view_n, LONG_SHARE[1], SHORT_SHARE[1])
        share_n = np.where(click_n, low_n + (high_n - low_n) * draw[4], 0.0)
        stay_n = np.where(click_n, config.stay_liked, np.where(hide_n, config.stay_hidden, self._traits.stay_skipped_n))
        self.shown_nP = np.column_stack([self.shown_nP, item_n])
        return Response(
            click_n=click_n,
            long_view_n=long_view_n,
            like_n=like_n,
            hide_n=hide_n,
            watch_s_n=share_n * behaviour.items.duration_s_I[item_n],
            stays_n=draw[5] < stay_n,
        )
