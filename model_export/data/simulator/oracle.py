"""The best slates: a beam search on the exact reward, over the whole catalog.

It is a near-oracle: prefixes are ranked by what they are worth so far plus a guess of what the rest can bring; then the
best slate is mended place by place. Tests hold it against every possible slate of tiny catalogs.

Shapes: b users, W beams, I items, C = I + 1 choices (the last: nothing), K slate size, P items shown earlier in the
same visit, k items of a slate so far.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from model_export.data.simulator.behaviour import Behaviour, Pressure
from model_export.data.simulator.items import Float, Int
from model_export.data.simulator.rewards import expected_rewards
from model_export.data.simulator.users import Traits

Bool = npt.NDArray[np.bool_]

LAST_RESORT = -1e6
"""Worth of choosing nothing: below any item."""
POOL_SIZE = 100
"""Items tried in each place of a slate that was found."""
ORDERED_POOL_SIZE = 12
"""Of these, items for which every order is tried too: a new item may want the others in other places."""
NUM_SWEEPS = 2
MAX_ORDERED = 5
"""Longer slates are not tried in every order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Whose best slates are wanted, out of what."""

    behaviour: Behaviour
    traits: Traits
    resting_bI: Float
    """Log-odds of a click on each item before anything in this visit."""
    allowed_bI: Bool
    """Which items may be in a slate."""
    prefix_bP: Int
    """Items shown before the slate in the same visit, the last at the end; -1 pads in front."""


def search_best(problem: Problem, k: int, width: int) -> Int:
    """Rows of near-best slates `[b, k]`, found with `width` beams; -1 where fewer than k items are allowed."""
    beams = _Beams(problem)
    alone_bI = np.where(problem.allowed_bI, beams.value_alone(), -np.inf)
    best_alone_bK = -np.partition(-alone_bI, min(k, alone_bI.shape[1]) - 1, axis=1)[:, :k]
    hope_b = np.where(np.isfinite(best_alone_bK), best_alone_bK, 0.0).mean(axis=1)
    for place in range(k):
        worth_bWC, reach_bWC = beams.choices()
        promise_bWC = worth_bWC + (k - place - 1) * reach_bWC * hope_b[:, None, None]
        promise_bWC[:, :, :-1][~beams.is_free()] = -np.inf
        promise_bWC[:, :, -1] += LAST_RESORT
        promise_bWC += LAST_RESORT * beams.num_empty()[:, :, None]
        beams.grow(promise_bWC, worth_bWC, reach_bWC, width)
    return _polished(problem, beams.best(), alone_bI)


def _polished(problem: Problem, slate_bK: Int, alone_bI: Float) -> Int:
    """Slates after two sweeps of whatever one change makes better: another of the items best alone in one place, that
    with another order for the best of these, another order."""
    user_b1 = np.arange(len(slate_bK))[:, None]
    pool_bC = np.argsort(-alone_bI, axis=1, kind="stable")[:, :POOL_SIZE]
    is_possible_bC = np.take_along_axis(alone_bI, pool_bC, axis=1) > -np.inf
    is_possible_bC &= (slate_bK >= 0).all(axis=1, keepdims=True)
    order_CK = np.array(list(permutations(range(slate_bK.shape[1]))) if slate_bK.shape[1] <= MAX_ORDERED else [])
    for _ in range(NUM_SWEEPS):
        for place in range(slate_bK.shape[1]):
            is_new_bC = is_possible_bC & (slate_bK[:, None, :] != pool_bC[:, :, None]).all(axis=2)
            others_bCK = np.repeat(slate_bK[:, None, :], pool_bC.shape[1], axis=1)
            others_bCK[:, :, place] = pool_bC
            others_bCK = np.where(is_new_bC[:, :, None], others_bCK, -1)
            slate_bK = _better(problem, slate_bK, others_bCK)
            if len(order_CK):
                in_order_bCOK = others_bCK[:, :ORDERED_POOL_SIZE][:, :, order_CK]
                slate_bK = _better(problem, slate_bK, in_order_bCOK.reshape(len(slate_bK), -1, slate_bK.shape[1]))
        if len(order_CK):
            slate_bK = _better(problem, slate_bK, slate_bK[user_b1[:, :, None], order_CK[None]])
    order_bK = np.argsort(slate_bK < 0, axis=1, kind="stable")
    return np.take_along_axis(slate_bK, order_bK, axis=1)


def _better(problem: Problem, slate_bK: Int, others_bCK: Int) -> Int:
    """Each user's slate, or the best of the others where that is worth more; an empty one never is."""
    every_bCK = np.concatenate([slate_bK[:, None, :], others_bCK], axis=1)
    resting_bCK = problem.resting_bI[np.arange(len(slate_bK))[:, None, None], every_bCK]
    worth_bC = expected_rewards(problem.behaviour, problem.traits, resting_bCK, every_bCK, problem.prefix_bP)
    worth_bC[:, 1:][(others_bCK < 0).all(axis=2)] = -np.inf
    best: Int = every_bCK[np.arange(len(slate_bK)), worth_bC.argmax(axis=1)]
    return best


class _Beams:
    """The beams of b users, and what the items in them do to every item."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._behaviour = problem, problem.behaviour
        num_users, num_items = problem.resting_bI.shape
        self._all_1I = np.arange(num_items)[None, :]
        self._all_bI = np.broadcast_to(self._all_1I, (num_users, num_items))
        self._slate_bWk: Int = np.empty((num_users, 1, 0), dtype=np.int64)
        self._total_bW = np.zeros((num_users, 1))
        self._reach_bW = np.ones((num_users, 1))
        self._fatigue_bWI = np.zeros((num_users, 1, num_items))
        self._appetite_bWI = np.zeros((num_users, 1, num_items))
        for place in range(problem.prefix_bP.shape[1]):
            self._press(problem.prefix_bP[:, place, None])
        self._num_before_b = (problem.prefix_bP >= 0).sum(axis=1)

    def value_alone(self) -> Float:
        """The reward `[b, I]` of each item as the first of the slate."""
        logit_bI = self._logit_bWI()[:, 0]
        return self._behaviour.value(self._behaviour.reaction(logit_bI), self._all_1I)

    def choices(self) -> tuple[Float, Float]:
        """For each beam and choice: the reward so far, and the chance that the user goes on."""
        behaviour, traits = self._behaviour, self._problem.traits
        reaction = behaviour.reaction(self._logit_bWI())
        worth_bWI = self._total_bW[:, :, None] + self._reach_bW[:, :, None] * behaviour.value(reaction, self._all_1I)
        reach_bWI = self._reach_bW[:, :, None] * behaviour.stay(traits, reaction)
        worth_bWC = np.concatenate([worth_bWI, self._total_bW[:, :, None]], axis=2)
        return worth_bWC, np.concatenate([reach_bWI, self._reach_bW[:, :, None]], axis=2)

    def num_empty(self) -> Int:
        """Places `[b, W]` of each beam where nothing was chosen."""
        num_bW: Int = (self._slate_bWk < 0).sum(axis=2)
        return num_bW

    def is_free(self) -> Bool:
        """Which items `[b, W, I]` are allowed and not in the beam."""
        in_slate_bWI = (self._slate_bWk[:, :, :, None] == self._all_1I[:, None]).any(axis=2)
        free: Bool = self._problem.allowed_bI[:, None, :] & ~in_slate_bWI
        return free

    def grow(self, promise_bWC: Float, worth_bWC: Float, reach_bWC: Float, width: int) -> None:
        """Go on with the `width` most promising choices of each user."""
        num_users, _, num_choices = promise_bWC.shape
        flat_bX = promise_bWC.reshape(num_users, -1)
        chosen_bW = np.argpartition(-flat_bX, min(width, flat_bX.shape[1]) - 1, axis=1)[:, :width]
        beam_bW, choice_bW = np.divmod(chosen_bW, num_choices)
        user_b1 = np.arange(num_users)[:, None]
        item_bW = np.where(choice_bW == num_choices - 1, -1, choice_bW)
        self._slate_bWk = np.concatenate([self._slate_bWk[user_b1, beam_bW], item_bW[:, :, None]], axis=2)
        impossible_bW = np.take_along_axis(flat_bX, chosen_bW, axis=1) == -np.inf
        worth_bW = np.take_along_axis(worth_bWC.reshape(num_users, -1), chosen_bW, axis=1)
        self._total_bW = np.where(impossible_bW, -np.inf, worth_bW)
        self._reach_bW = np.take_along_axis(reach_bWC.reshape(num_users, -1), chosen_bW, axis=1)
        self._fatigue_bWI = self._fatigue_bWI[user_b1, beam_bW]
        self._appetite_bWI = self._appetite_bWI[user_b1, beam_bW]
        self._press(item_bW)

    def best(self) -> Int:
        """The slates `[b, K]` of the most worth: first of most items, -1 at the end."""
        num_users = len(self._total_bW)
        length_bW = (self._slate_bWk >= 0).sum(axis=2)
        rank_bW = np.where(self._total_bW > -np.inf, self._total_bW - LAST_RESORT * length_bW, -np.inf)
        slate_bK = self._slate_bWk[np.arange(num_users), rank_bW.argmax(axis=1)]
        order_bK = np.argsort(slate_bK < 0, axis=1, kind="stable")
        return np.take_along_axis(slate_bK, order_bK, axis=1)

    def _logit_bWI(self) -> Float:
        pressure = Pressure(fatigue=self._fatigue_bWI, appetite=self._appetite_bWI)
        strain_bWI = self._behaviour.strain(self._problem.traits, self._all_bI[:, None, :], pressure)
        position_b = self._num_before_b + self._slate_bWk.shape[2]
        drop_b = self._behaviour.config.position_drop * position_b
        logit_bWI: Float = self._problem.resting_bI[:, None, :] - strain_bWI - drop_b[:, None, None]
        return logit_bWI

    def _press(self, item_bW: Int) -> None:
        """One more item was shown: what came before it is farther away."""
        spacing = self._behaviour.config.spacing
        each = self._behaviour.pressure(item_bW[:, :, None], self._all_1I[None])
        self._fatigue_bWI = spacing * self._fatigue_bWI + each.fatigue
        self._appetite_bWI = spacing * self._appetite_bWI + each.appetite
