"""Best of N: no slate of the beam is better, and ranks are the generator's own."""

import numpy as np
import pytest
from alignment_world import Taste, large_items, start, world

from model_export.align.best_of_n import BestOfN
from model_export.align.candidates import CandidateSearch
from model_export.evaluate.generative import GenerativeRecommender


@pytest.mark.parametrize("kind", ["beam", "sampled"])
def test_it_returns_the_best_candidate(kind: str) -> None:
    prepared = world(70)
    trained, valid, scorer = start(prepared), prepared.examples("valid"), Taste(large_items)
    best = BestOfN(trained, scorer, prepared, num_candidates=16, candidates=kind, seed=3)  # type: ignore[arg-type]
    slate_EK = best.slates(valid, 2)
    search = CandidateSearch(trained, prepared, kind=kind)  # type: ignore[arg-type]
    item_EWK = np.concatenate([candidates.item_BWK for _, candidates in search.batches(valid, 16, seed=3)])
    reward_EW = scorer.score(valid, item_EWK)
    np.testing.assert_array_equal(scorer.score(valid, slate_EK[:, None])[:, 0], reward_EW.max(1))
    assert reward_EW.max(1).mean() > reward_EW[:, 0].mean()
    np.testing.assert_array_equal(slate_EK, best.slates(valid, 2))


def test_ranks_are_those_of_the_generator() -> None:
    prepared = world(70)
    trained, valid = start(prepared), prepared.examples("valid")
    best = BestOfN(trained, Taste(large_items), prepared, num_candidates=4)
    plain = GenerativeRecommender(trained, prepared, beam_width=10)
    np.testing.assert_array_equal(best.rank(valid, 10), plain.rank(valid, 10))
    with pytest.raises(ValueError, match="slates of 2 items, not 3"):
        best.slates(valid, 3)
