"""Content neighbours: what is like the history, whoever took it. The baseline for items that training never saw.

Shapes: E examples, N items, D embedding width, P pairs.
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
class ContentConfig:
    """Settings of `ContentNeighbours`."""

    decay: float = 0.5
    """A history item weighs decay ** age; age 0 is the newest."""
    max_history_length: int = 50
    """Older history items are left out."""
    exclude_history: bool = False
    """Put items of the history last even where repeats are allowed: an item is most like itself."""

    def __post_init__(self) -> None:
        if self.max_history_length < 1 or not 0 < self.decay <= 1:
            raise ValueError("max_history_length must be at least 1, and decay in (0, 1]")


class ContentNeighbours(ScoringRecommender):
    """score(i | history) = cos(v_i, sum over ages a of decay^a v_{h_a}), v the items' unit vectors.

    Knows nothing of what users did, so an item without events is scored as any other. An empty history gets the popular
    list. `ValueError` where `feature_ND` is not one row per item.
    """

    name = "content"

    def __init__(
        self,
        prepared: PreparedData,
        config: ContentConfig | None = None,
        *,
        feature_ND: npt.NDArray[np.floating],
    ) -> None:
        super().__init__(prepared)
        if len(feature_ND) != prepared.num_items:
            raise ValueError(f"content needs a feature row for each of {prepared.num_items} items")
        self.config = config or ContentConfig()
        norm_N = np.linalg.norm(feature_ND, axis=1, keepdims=True)
        self._unit_ND = (feature_ND / np.where(norm_N > 0, norm_N, 1.0)).astype(np.float32)
        popularity_N = next_item_counts(prepared)
        # So small that it decides only where no text speaks, as for an empty history.
        self._tie_break_N = 1e-9 * popularity_N / max(float(popularity_N.max(initial=0.0)), 1.0)

    def scores(self, examples: Examples) -> Scores:
        """Cosines plus the tie-break by popularity."""
        example_P, item_P, age_P = history_pairs(self.prepared, examples)
        is_kept_P = age_P < self.config.max_history_length
        weight_P = self.config.decay ** age_P[is_kept_P].astype(np.float64)
        shape = (len(examples), self.prepared.num_items)
        history_EN = sp.csr_array((weight_P, (example_P[is_kept_P], item_P[is_kept_P])), shape=shape)
        taste_ED = np.asarray(history_EN @ self._unit_ND)
        norm_E = np.linalg.norm(taste_ED, axis=1, keepdims=True)
        score_EN = (taste_ED / np.where(norm_E > 0, norm_E, 1.0)) @ self._unit_ND.T.astype(np.float64)
        if self.config.exclude_history:
            score_EN[example_P, item_P] -= 3.0
        return np.asarray(score_EN + self._tie_break_N)
