"""Best of N: the candidate slate that a scorer likes best, without any training. The control of alignment.

Legend: E examples, W candidates, K length of a list.
"""

import numpy as np
import numpy.typing as npt

from model_export.align.candidates import CandidateSearch
from model_export.align.config import CandidateKind
from model_export.align.rollouts import best_of, score_candidates
from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.reward.scorer import SlateScorer
from model_export.train.stage import TrainedGenerator

_BATCH = 32
_MIN_ITEM_BEAM = 50
Items = npt.NDArray[np.int32]


class BestOfN:
    """A recommender (`model_export.evaluate.recommender.Recommender`): the generator's candidates, rescored."""

    def __init__(
        self,
        trained: TrainedGenerator,
        scorer: SlateScorer,
        prepared: PreparedData,
        *,
        num_candidates: int,
        candidates: CandidateKind = "beam",
        temperature: float = 1.0,
        seed: int = 0,
        name: str = "best of N",
    ) -> None:
        self.name = name
        self._scorer = scorer
        self._num_candidates = num_candidates
        self._seed = seed
        self._slate_size = trained.generator.spec.slate_size
        self._first_items = CandidateSearch(trained, prepared, batch_size=_BATCH)
        self._search = CandidateSearch(trained, prepared, kind=candidates, temperature=temperature, batch_size=_BATCH)

    def rank(self, examples: Examples, k: int) -> Items:
        """The k best first items `[E, K]` of a beam of at least 50: the generator's own, for no slate is chosen."""
        item_EK = np.full((len(examples), k), -1, dtype=np.int32)
        place = 0
        for batch, candidates in self._first_items.batches(examples, max(_MIN_ITEM_BEAM, k), num_items=1):
            item_EK[place : place + len(batch)] = candidates.item_BWK[:, :k, 0]
            place += len(batch)
        return item_EK

    def slates(self, examples: Examples, k: int) -> Items:
        """The candidate of k items `[E, K]` with the highest reward."""
        if k > self._slate_size:
            raise ValueError(f"the generator writes slates of {self._slate_size} items, not {k}")
        slate_EK = np.full((len(examples), k), -1, dtype=np.int32)
        place = 0
        batches = self._search.batches(examples, self._num_candidates, num_items=k, seed=self._seed)
        for batch, candidates in batches:
            best_B = best_of(score_candidates(self._scorer, batch, candidates))
            slate_EK[place : place + len(batch)] = candidates.item_BWK[np.arange(len(batch)), best_B]
            place += len(batch)
        return slate_EK
