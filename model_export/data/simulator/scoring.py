"""The truth as a scorer of slates, for the examples of a prepared data set.

Shapes: B users or examples, W slates of each, K slate size, P items shown earlier in the same visit, I items of the
simulated catalog, N items of the prepared catalog, C items of each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.data.simulator.behaviour import Behaviour, Memory
from model_export.data.simulator.items import Float, Int
from model_export.data.simulator.oracle import Problem, search_best
from model_export.data.simulator.rewards import expected_rewards
from model_export.data.simulator.users import Interests, Traits

if TYPE_CHECKING:
    from model_export.data.simulator.truth import Truth

Bool = npt.NDArray[np.bool_]

MAX_CELLS = 2_000_000
"""Pairs of items, or items of beams, that one step looks at: bounds the memory to some hundred megabytes."""
ORACLE_WIDTH = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """B users, each at one moment. Times are milliseconds since the log began."""

    traits: Traits
    interests: Interests
    memory: Memory
    """Row b is user b's."""
    memory_ms_B: Int
    """The moment at which the memory counts: the beginning of a visit that goes on, else now."""
    now_ms_B: Int
    prefix_BP: Int
    """Items shown earlier in the visit that goes on, the last at the end; -1 pads in front."""

    def resting(self, behaviour: Behaviour, item_BC: Int) -> Float:
        """Log-odds of a click on items before anything in the visit: taste less the strain of memory."""
        pressure = self.memory.pressure(np.arange(len(item_BC)), self.memory_ms_B, item_BC)
        taste_BC = behaviour.taste(self.traits, self.interests, item_BC)
        return taste_BC - behaviour.strain(self.traits, item_BC, pressure)


class TrueScorer:
    """Tells what slates are worth to the users of `prepared`, at the moment of each example's target."""

    def __init__(self, truth: "Truth", prepared: PreparedData) -> None:
        self._truth, self._prepared = truth, prepared
        self._behaviour = truth.behaviour
        self._row_N = _places(prepared.items["item_id"].to_list(), truth.items.item_ids, "item_id")
        starts = np.flatnonzero(np.diff(prepared.segment_E, prepend=-1))
        self._user_S = _places(prepared.user_id_E.gather(starts).to_list(), truth.user_ids, "user_id")
        self._start_ms = round(truth.config.start_timestamp_s * 1000)

    def score(self, examples: Examples, item_BWK: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """The expected reward `[B, W]` of each slate, from the example's moment on.

        Args:
            examples: Who, and when: the moment of the target's first event (see `Truth.state`).
            item_BWK: Item indexes of `prepared`; at -1 nothing is shown. An item that is not published yet at that
                moment cannot be seen: its place counts as empty.
        """
        num_slates, slate_size = item_BWK.shape[1:]
        score_BW = np.zeros(item_BWK.shape[:2], dtype=np.float32)
        pairs = num_slates * slate_size * (slate_size + self._truth.config.max_shown)
        for rows, state in self._states(examples, max(pairs, len(self._truth.items))):
            row_bWK = np.where(item_BWK[rows] >= 0, self._row_N[item_BWK[rows]], -1)
            is_out = self._behaviour.items.published_ms_I[row_bWK] > state.now_ms_B[:, None, None]
            row_bWK = np.where(is_out, -1, row_bWK)
            flat_bC = row_bWK.reshape(len(row_bWK), -1)
            resting_bWK = state.resting(self._behaviour, flat_bC).reshape(row_bWK.shape)
            score_BW[rows] = expected_rewards(self._behaviour, state.traits, resting_bWK, row_bWK, state.prefix_BP)
        return score_BW

    def single_rewards(self, examples: Examples) -> npt.NDArray[np.float32]:
        """The expected reward `[B, N]` of each item of the catalog, shown alone."""
        item_1N1 = np.arange(len(self._row_N))[None, :, None]
        return self.score(examples, np.broadcast_to(item_1N1, (len(examples), *item_1N1.shape[1:])))

    def item_wise(self, examples: Examples, k: int) -> npt.NDArray[np.int64]:
        """Slates `[B, k]` of the items that are worth most alone: a perfect ranking of single items."""
        item_BK = np.empty((len(examples), k), dtype=np.int64)
        for start in range(0, len(examples), 512):
            some = slice(start, start + 512)
            reward_bN = np.where(self._allowed(examples[some]), self.single_rewards(examples[some]), -np.inf)
            item_BK[some] = np.argsort(-reward_bN, axis=1, kind="stable")[:, :k]
        return item_BK

    def oracle(self, examples: Examples, k: int, *, width: int = ORACLE_WIDTH) -> npt.NDArray[np.int64]:
        """Slates `[B, k]` near the best possible, by a beam search over the whole catalog on the true reward.

        Items must be available and published, and may repeat the example's history only under the repeat policy
        `allow`. -1 where fewer than k such items are there.
        """
        item_BK = np.empty((len(examples), k), dtype=np.int64)
        back_I = np.full(len(self._truth.items), -1)
        back_I[self._row_N] = np.arange(len(self._row_N))
        for rows, state in self._states(examples, len(self._truth.items) * width * 4):
            allowed_bI = np.zeros((len(state.now_ms_B), len(self._truth.items)), dtype=np.bool_)
            allowed_bI[:, self._row_N] = self._allowed(examples[rows])
            all_bI = np.broadcast_to(np.arange(allowed_bI.shape[1]), allowed_bI.shape)
            problem = Problem(
                behaviour=self._behaviour,
                traits=state.traits,
                resting_bI=state.resting(self._behaviour, all_bI),
                allowed_bI=allowed_bI,
                prefix_bP=state.prefix_BP,
            )
            best_bK = search_best(problem, k, width)
            item_BK[rows] = np.where(best_bK >= 0, back_I[best_bK], -1)
        return item_BK

    def _states(self, examples: Examples, cells_each: int) -> Iterator[tuple[slice, State]]:
        """The states of so many examples at a time that `MAX_CELLS` holds."""
        user_B = self._user_S[examples.segment]
        now_ms_B = self._prepared.timestamp_ms_E[examples.target_start] - self._start_ms
        step = max(1, MAX_CELLS // max(cells_each, 1))
        for start in range(0, len(examples), step):
            rows = slice(start, start + step)
            yield rows, self._truth.state(user_B[rows], now_ms_B[rows])

    def _allowed(self, examples: Examples) -> Bool:
        """Which items of `prepared` `[B, N]` may be recommended."""
        prepared = self._prepared
        now_ms_B = prepared.timestamp_ms_E[examples.target_start] - self._start_ms
        allowed_BN = self._truth.items.published_ms_I[self._row_N] <= now_ms_B[:, None]
        allowed_BN &= prepared.items["available"].to_numpy()
        if prepared.meta["repeat_policy"] == "exclude":
            length_B = examples.history_end - examples.history_start
            place = np.repeat(np.arange(len(examples)), length_B)
            first = np.repeat(examples.history_start - (np.cumsum(length_B) - length_B), length_B)
            allowed_BN[place, prepared.item_E[first + np.arange(len(place))]] = False
        return allowed_BN


def _places(names: list[str], known: list[str], what: str) -> Int:
    """Where each name stands among the known ones; `ValueError` names the first that does not."""
    place_of = {name: place for place, name in enumerate(known)}
    unknown = next((name for name in names if name not in place_of), None)
    if unknown is not None:
        raise ValueError(f"{what} {unknown!r} is not of the simulated world that this truth tells about")
    return np.array([place_of[name] for name in names], dtype=np.int64)
