"""What is measured on held-out users after each iteration, and whether its model is kept.

Legend: E examples, W = 1 slate of each, K slate size.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_export.align.candidates import CandidateSearch
from model_export.align.config import AlignConfig
from model_export.data.prepared import PreparedData
from model_export.reward.scorer import SlateScorer
from model_export.train.stage import TrainedGenerator

Items = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Figures of one model on the same validation examples."""

    reward: float
    """Mean reward of the best slate of the beam, by the scorer that alignment optimises."""
    truth: float | None
    """The same by a scorer that alignment never sees; None without one."""
    ndcg_10: float
    """Item level: of the first target item in a beam of first items."""
    recall_10: float
    diversity: float
    """Share of a slate's pairs of items whose first codes differ."""
    coverage: float
    """Share of the catalog that appears in at least one slate."""
    legality: float
    """Share of the places that hold an available item that is neither repeated nor, under `exclude`, in the history."""


def is_kept(config: AlignConfig, now: Measurement, best: Measurement, start: Measurement) -> bool:
    """Whether a model replaces the best one so far; `truth` has no say."""
    return (
        now.reward > best.reward
        and now.ndcg_10 >= (1 - config.max_ndcg_drop) * start.ndcg_10
        and now.diversity >= (1 - config.max_diversity_drop) * start.diversity
        and now.legality >= start.legality
    )


class Meter:
    """Measures one generator whose weights change, always on the same sample of validation examples."""

    def __init__(
        self,
        config: AlignConfig,
        trained: TrainedGenerator,
        prepared: PreparedData,
        scorer: SlateScorer,
        truth: SlateScorer | None,
    ) -> None:
        examples = prepared.examples("valid")
        if len(examples) == 0:
            raise ValueError("there are no validation examples: alignment could not tell when to stop")
        if len(examples) > config.num_valid_examples:
            rng = np.random.default_rng(config.seed)
            examples = examples[np.sort(rng.choice(len(examples), config.num_valid_examples, replace=False))]
        self._examples = examples
        self._beam_width = config.valid_beam_width
        self._prepared = prepared
        self._trained = trained
        self._scorer = scorer
        self._truth = truth
        self._search = CandidateSearch(trained, prepared, batch_size=config.rollout_batch_size)
        first_code_N = np.empty(prepared.num_items, dtype=np.int32)
        first_code_N[trained.catalog.item_of_row_N] = trained.catalog.snapshot.sids_NL[:, 0]
        self._first_code_N = first_code_N

    def measure(self) -> Measurement:
        """Decodes and scores."""
        batches = self._search.batches(self._examples, self._beam_width)
        slate_EK = np.concatenate([candidates.item_BWK[:, 0] for _, candidates in batches])
        rank_E = self._first_item_ranks()
        return Measurement(
            reward=self._reward(self._scorer, slate_EK),
            truth=self._reward(self._truth, slate_EK) if self._truth else None,
            ndcg_10=float(np.where(rank_E < 10, 1 / np.log2(rank_E + 2.0), 0.0).mean()),
            recall_10=float((rank_E < 10).mean()),
            diversity=code_diversity(slate_EK, self._first_code_N),
            coverage=len(np.unique(slate_EK[slate_EK >= 0])) / self._prepared.num_items,
            legality=self._legality(slate_EK),
        )

    def _first_item_ranks(self) -> npt.NDArray[np.int64]:
        """Rank from 0 of the first target item [E] in a beam of first items; the beam's width if it is not there."""
        batches = self._search.batches(self._examples, self._beam_width, num_items=1)
        first_EW = np.concatenate([candidates.item_BWK[:, :, 0] for _, candidates in batches])
        is_target_EW = first_EW == self._prepared.target_items(self._examples)[:, :1]
        return np.where(is_target_EW.any(1), is_target_EW.argmax(1), self._beam_width)

    def _reward(self, scorer: SlateScorer, slate_EK: Items) -> float:
        return float(np.mean(scorer.score(self._examples, slate_EK[:, None]), dtype=np.float64))

    def _legality(self, slate_EK: Items) -> float:
        available_N = self._prepared.items["available"].to_numpy()
        is_legal_EK = (slate_EK >= 0) & available_N[slate_EK]
        for place in range(1, slate_EK.shape[1]):
            is_legal_EK[:, place] &= (slate_EK[:, :place] != slate_EK[:, place : place + 1]).all(1)
        if self._prepared.meta["repeat_policy"] == "exclude":
            histories = zip(self._examples.history_start, self._examples.history_end, strict=True)
            for number, (start, end) in enumerate(histories):
                is_legal_EK[number] &= ~np.isin(slate_EK[number], self._prepared.item_E[start:end])
        return float(is_legal_EK.mean())


def code_diversity(slate_EK: Items, first_code_N: Items) -> float:
    """Share of the pairs of items inside slates whose first codes differ; 1 if there are no pairs."""
    left, right = np.triu_indices(slate_EK.shape[1], k=1)
    is_pair_EP = (slate_EK[:, left] >= 0) & (slate_EK[:, right] >= 0)
    differs_EP = first_code_N[slate_EK[:, left]] != first_code_N[slate_EK[:, right]]
    return float(differs_EP[is_pair_EP].mean()) if is_pair_EP.any() else 1.0
