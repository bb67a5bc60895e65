"""How users react: the one model of behaviour that the log is drawn from and that true rewards are computed from.

An item's log-odds of a click are its resting logit (taste, quality, and what was consumed in earlier visits) less its
place in the visit and less what the items shown before it in the visit do to it. That depends on what was *shown*,
never on the reactions, so that the expected reward of a slate is an exact recursion (`rewards`).

Shapes: n users, C items of each, M interests; I items, T topics.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from model_export.data.simulator.config import SimulatorConfig
from model_export.data.simulator.items import GROUP_T, Float, Int, SimulatedItems
from model_export.data.simulator.users import Interests, Traits

LONG_VIEW_LOGIT, LONG_VIEW_SLOPE = 0.0, 0.6
LIKE_LOGIT, LIKE_SLOPE = -2.4, 0.6
HIDE_LOGIT, HIDE_SLOPE = -4.0, -0.7
LONG_SHARE = (0.6, 1.0)
"""Part of the duration watched in a long view: uniform between these."""
SHORT_SHARE = (0.1, 0.6)
"""The same for a click that is none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reaction:
    """Chances of what a user does who is shown an item. Each is given that the one before happened."""

    click: Float
    long_view: Float
    """Given a click."""
    like: Float
    """Given a long view."""
    hide: Float
    """Given no click."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pressure:
    """What earlier items do to later ones, before a user's sensitivity."""

    fatigue: Float
    appetite: Float


class Behaviour:
    """Reactions to items, under one configuration and catalog."""

    def __init__(self, config: SimulatorConfig, items: SimulatedItems) -> None:
        self.config, self.items = config, items
        self._group_I, self._satiety_I = items.group_I, items.satiety_T[items.topic_I]

    def taste(self, traits: Traits, interests: Interests, item_nC: Int) -> Float:
        """Log-odds by interests, style and quality, without any effect of earlier items."""
        config, items = self.config, self.items
        topic_nC, subject_nC, group_nC = items.topic_I[item_nC], items.subject_I[item_nC], self._group_I[item_nC]
        topic_share = 1.0 - config.group_share - config.subject_share
        fit_nC = np.zeros(item_nC.shape)
        for place in range(interests.topic_nM.shape[1]):
            topic = interests.topic_nM[:, place, None]
            match = config.group_share * ((GROUP_T[topic] == group_nC) & (topic >= 0))
            match += topic_share * (topic == topic_nC)
            match += config.subject_share * (interests.subject_nM[:, place, None] == subject_nC)
            fit_nC += interests.strength_nM[:, place, None] * match
        style_nC = np.take_along_axis(traits.style_nF, items.frame_I[item_nC], axis=1)
        return config.bias + config.taste * fit_nC + style_nC + items.quality_I[item_nC]

    def pressure(self, earlier: Int, later: Int) -> Pressure:
        """Of one item just before another, both by row; -1 is no item. Shapes broadcast."""
        config, items = self.config, self.items
        is_one = (earlier >= 0) & (later >= 0)
        fatigue = config.fatigue_topic * (items.topic_I[earlier] == items.topic_I[later])
        fatigue += config.fatigue_subject * (items.subject_I[earlier] == items.subject_I[later])
        fatigue += config.fatigue_series * (items.series_I[earlier] == items.series_I[later])
        fatigue += config.fatigue_item * (earlier == later)
        appetite = config.sequel_appetite * (items.previous_I[later] == earlier)
        return Pressure(fatigue=fatigue * is_one, appetite=appetite * is_one)

    def strain(self, traits: Traits, item_nC: Int, pressure_nC: Pressure) -> Float:
        """What a pressure takes from the log-odds of these users. Arrays may have further axes after n."""
        sensitivity = traits.sensitivity_n.reshape(-1, *[1] * (item_nC.ndim - 1))
        felt = sensitivity * self._satiety_I[item_nC] * pressure_nC.fatigue - pressure_nC.appetite
        return self.config.boredom * felt

    def reaction(self, logit: Float) -> Reaction:
        """Chances at these log-odds of a click."""
        return Reaction(
            click=expit(logit),
            long_view=expit(LONG_VIEW_LOGIT + LONG_VIEW_SLOPE * logit),
            like=expit(LIKE_LOGIT + LIKE_SLOPE * logit),
            hide=expit(HIDE_LOGIT + HIDE_SLOPE * logit),
        )

    def value(self, reaction: Reaction, item: Int) -> Float:
        """The expected reward of an item that is seen. The weights are the configuration's `reward_*`."""
        config = self.config
        long_share, short_share = sum(LONG_SHARE) / 2, sum(SHORT_SHARE) / 2
        watched = reaction.long_view * long_share + (1 - reaction.long_view) * short_share
        of_click = (
            config.reward_click
            + config.reward_long_view * reaction.long_view
            + config.reward_like * reaction.long_view * reaction.like
            + config.reward_watch_min * watched * self.items.duration_s_I[item] / 60.0
        )
        return reaction.click * of_click + config.reward_hide * (1 - reaction.click) * reaction.hide

    def stay(self, traits: Traits, reaction: Reaction) -> Float:
        """The chance to go on after an item, over all reactions to it."""
        stay_skipped = traits.stay_skipped_n.reshape(-1, *[1] * (reaction.click.ndim - 1))
        passed = reaction.hide * self.config.stay_hidden + (1 - reaction.hide) * stay_skipped
        return reaction.click * self.config.stay_liked + (1 - reaction.click) * passed


class Memory:
    """What users consumed in earlier visits, by topic, subject, series and item, decayed by age.

    Kept as if everything were seen from the beginning of the log: an item consumed at t weighs exp(t / memory), and
    what is read at t is scaled by exp(-t / memory), so that nothing needs to be touched as time goes by.
    """

    def __init__(self, behaviour: Behaviour, num_users: int) -> None:
        items = behaviour.items
        self._behaviour, self._lifetime_ms = behaviour, behaviour.config.memory_days * 86_400_000.0
        keys = (items.topic_I, items.subject_I, items.series_I, np.arange(len(items)))
        self._levels = [(key_I, np.zeros((num_users, int(key_I.max()) + 1))) for key_I in keys]

    def add(self, user_n: Int, item_n: Int, time_ms_n: Int) -> None:
        """Users consumed items at these times (milliseconds since the log began)."""
        weight_n = self._behaviour.config.carry * np.exp(time_ms_n / self._lifetime_ms)
        for key_I, weight_UX in self._levels:
            np.add.at(weight_UX, (user_n, key_I[item_n]), weight_n)

    def pressure(self, user_n: Int, time_ms_n: Int, item_nC: Int) -> Pressure:
        """On items that are shown at these times."""
        config, previous_I = self._behaviour.config, self._behaviour.items.previous_I
        user_n1 = user_n[:, None]
        scale_n1 = np.exp(-time_ms_n / self._lifetime_ms)[:, None]
        weights = (config.fatigue_topic, config.fatigue_subject, config.fatigue_series, config.fatigue_item)
        fatigue_nC = np.zeros(item_nC.shape)
        for weight, (key_I, weight_UX) in zip(weights, self._levels, strict=True):
            fatigue_nC += weight * weight_UX[user_n1, key_I[item_nC]]
        previous_nC = previous_I[item_nC]
        _, weight_UI = self._levels[-1]
        appetite_nC = config.sequel_appetite * np.where(previous_nC >= 0, weight_UI[user_n1, previous_nC], 0.0)
        return Pressure(fatigue=fatigue_nC * scale_n1, appetite=appetite_nC * scale_n1)
