"""Thousands of random requests at narrow beams: every slate is legal, and as long as the request allows."""

from collections import Counter

import numpy as np
import pytest
from search_problems import CODEBOOK_SIZES, SCORE_MODES, Problem, random_problem, tiny_generator

from model_export.search import BeamSearch, Slates

NUM_REQUESTS = 48
SIZES = (CODEBOOK_SIZES, (6, 5), (40,), (2, 2, 2, 2))


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_slates_are_legal_distinct_and_complete(score_mode: str) -> None:
    rng = np.random.default_rng(7)
    lengths: Counter[int] = Counter()
    for number in range(32):
        sizes = SIZES[number % len(SIZES)]
        generator = tiny_generator(
            len(sizes), 4, score_mode, num_experts=1 + 2 * (number % 2), codebook_sizes=sizes, seed=number % 5
        )
        problem = random_problem(rng, sizes, NUM_REQUESTS, most_items=40)
        slates = BeamSearch(generator, problem.catalog).decode(
            problem.history, beam_width=1 + number % 4, **problem.restrictions()
        )
        for request in range(NUM_REQUESTS):
            lengths[_check(slates, problem, request)] += 1
    # The fuzz must have met what it is for: empty, short and whole slates.
    assert min(lengths[length] for length in range(5)) > 20, lengths


def _check(slates: Slates, problem: Problem, request: int) -> int:
    available = set(problem.available(request))
    expected = min(4, len(available))
    live_W = slates.scores_BW[request].numpy() > -1e29
    assert live_W[0]  # the best beam always lives, if only to say that there is nothing
    assert not np.isnan(slates.level_logprobs_BWKL[request].numpy()).any()
    for beam, rows_K in enumerate(slates.item_rows_BWK[request].tolist()):
        shown = [row for row in rows_K if row >= 0]
        assert slates.item_valid_BWK[request, beam].tolist() == [row >= 0 for row in rows_K]
        if not live_W[beam]:
            assert not shown
            continue
        assert shown == rows_K[: len(shown)]  # nothing after the end
        assert len(shown) == len(set(shown)) == expected
        assert set(shown) <= available
    return expected


def test_live_beams_hold_different_sets() -> None:
    rng = np.random.default_rng(11)
    for number in range(12):
        generator = tiny_generator(2, 4, "full_softmax", seed=number % 5, codebook_sizes=(6, 5))
        problem = random_problem(rng, (6, 5), 16, most_items=30)
        slates = BeamSearch(generator, problem.catalog).decode(problem.history, beam_width=6, **problem.restrictions())
        for request in range(16):
            live = slates.item_rows_BWK[request][slates.scores_BW[request] > -1e29].tolist()
            assert len({frozenset(rows) for rows in live}) == len(live)
            # As many single items as there are, up to the beam: none is lost before sets are compared.
            if len(problem.available(request)) == 1:
                assert len(live) == 1
