"""Item-to-item co-occurrence with recency: what followed the newest items of the history.

Shapes: E examples, N items, T training events, P pairs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.evaluate.baselines.popularity import next_item_counts
from model_export.evaluate.baselines.scoring import Scores, ScoringRecommender
from model_export.evaluate.sequences import history_pairs


@dataclass(frozen=True, kw_only=True)
class CooccurrenceConfig:
    """Settings of `Cooccurrence`. The defaults were chosen on the validation part of Industrial."""

    window: int = 10
    """Events up to this many places apart in a segment co-occur, with weight 1 / distance."""
    backward_weight: float = 0.5
    """Weight of a pair against the direction of time; 1 makes the counts symmetric, 0 counts only what followed."""
    power: float = 0.5
    """Row-normalised counts are raised to this; below 1 it dampens frequent pairs."""
    decay: float = 0.5
    """A history item weighs decay ** age; age 0 is the newest."""
    max_history_length: int = 50
    """Older history items are left out."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.max_history_length < 1:
            raise ValueError("window and max_history_length must be at least 1")
        if self.backward_weight < 0 or self.power <= 0 or not 0 < self.decay <= 1:
            raise ValueError("backward_weight must be at least 0, power positive, and decay in (0, 1]")


class Cooccurrence(ScoringRecommender):
    """score(i | history) = sum over ages a of decay^a (C[h_a, i] / sum_j C[h_a, j])^power.

    C counts pairs of training events of one segment, an item with itself included, so that repeats are learnt where the
    repeat policy allows them. Items without any evidence follow in order of popularity.
    """

    name = "cooccurrence"

    def __init__(self, prepared: PreparedData, config: CooccurrenceConfig | None = None) -> None:
        super().__init__(prepared)
        self.config = config or CooccurrenceConfig()
        self._weight_NN = transition_weights(prepared, self.config)
        popularity_N = next_item_counts(prepared)
        # So small that it decides only between items of the same evidence, such as none.
        self._tie_break_N = 1e-12 * popularity_N / max(float(popularity_N.max(initial=0.0)), 1.0)

    def scores(self, examples: Examples) -> Scores:
        """Evidence from the history plus the tie-break by popularity."""
        example_P, item_P, age_P = history_pairs(self.prepared, examples)
        is_kept_P = age_P < self.config.max_history_length
        weight_P = self.config.decay ** age_P[is_kept_P].astype(np.float64)
        shape = (len(examples), self.prepared.num_items)
        history_EN = sp.csr_array((weight_P, (example_P[is_kept_P], item_P[is_kept_P])), shape=shape)
        return np.asarray((history_EN @ self._weight_NN).todense()) + self._tie_break_N


def transition_weights(prepared: PreparedData, config: CooccurrenceConfig) -> sp.csr_array:
    """Row-normalised co-occurrence to the power `config.power`, `[N, N]`."""
    is_train_E = prepared.train_events()
    item_T, segment_T = prepared.item_E[is_train_E], prepared.segment_E[is_train_E]
    shape = (prepared.num_items, prepared.num_items)
    counts_NN = sp.csr_array(shape, dtype=np.float64)
    for distance in range(1, config.window + 1):
        is_pair = segment_T[distance:] == segment_T[:-distance]
        earlier_P, later_P = item_T[:-distance][is_pair], item_T[distance:][is_pair]
        weight_P = np.full(len(earlier_P), 1.0 / distance)
        forward_NN = sp.csr_array((weight_P, (earlier_P, later_P)), shape=shape)
        counts_NN = counts_NN + forward_NN + config.backward_weight * forward_NN.T
    weight_NN = sp.csr_array(counts_NN)
    row_sum_N: npt.NDArray[np.float64] = np.asarray(weight_NN.sum(axis=1)).ravel()
    num_in_row_N = np.diff(weight_NN.indptr)
    weight_NN.data = (weight_NN.data / np.repeat(row_sum_N, num_in_row_N)) ** config.power
    return weight_NN
