"""Sampled slates: drawn from the distribution that they should be drawn from, and always legal."""

import itertools

import numpy as np
import pytest
import torch
from search_problems import SCORE_MODES, Oracle, Problem, make_catalog, make_history, random_problem, tiny_generator

from model_export.align.sampling import SlateSampler

SIDS = [(0, 0), (0, 2), (1, 1), (3, 0), (3, 1), (3, 2)]
NUM_DRAWS = 20_000


def draw_probabilities(oracle: Oracle, temperature: float) -> dict[tuple[int, ...], float]:
    """Of every slate, by the product of its codes' shares among what was legal."""
    shares = {}
    for slate in itertools.permutations(oracle.available, oracle.length):
        share = 1.0
        for place, row in enumerate(slate):
            open_sids = [SIDS[other] for other in oracle.available if other not in slate[:place]]
            for level in range(2):
                prefix = SIDS[row][:level]
                codes = sorted({sid[level] for sid in open_sids if sid[:level] == prefix})
                logit_C = np.array([oracle.logprob(slate[:place], prefix, code) for code in codes]) / temperature
                share *= np.exp(logit_C - np.logaddexp.reduce(logit_C))[codes.index(SIDS[row][level])]
        shares[slate] = share
    return shares


@pytest.mark.parametrize("score_mode", SCORE_MODES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_slates_come_as_often_as_they_should(score_mode: str, temperature: float) -> None:
    generator = tiny_generator(2, 2, score_mode)
    events = [[((2, 3), 1, 5000, 2.0)]]
    problem = Problem(
        catalog=make_catalog(SIDS),
        history=make_history(events, 2),
        excluded=(frozenset({4}),),
        allowed_FN=np.array([[True, True, True, True, True, True]]),
        slots=(0,),
    )
    sampler = SlateSampler(generator, problem.catalog, temperature=temperature)
    sampler.reseed(7)
    slates = sampler.decode(problem.history, beam_width=NUM_DRAWS, **problem.restrictions())
    oracle = Oracle(generator, problem, 0, 2)
    shares = draw_probabilities(oracle, temperature)
    drawn, count = np.unique(slates.item_rows_BWK[0].numpy(), axis=0, return_counts=True)
    counts = {tuple(slate): int(number) for slate, number in zip(drawn.tolist(), count, strict=True)}
    assert counts.keys() <= shares.keys()
    for slate, share in shares.items():
        deviation = (share * (1 - share) * NUM_DRAWS) ** 0.5
        assert abs(counts.get(slate, 0) - share * NUM_DRAWS) < 4.5 * deviation + 1
    scores = oracle.all_slates()
    for slate, score in zip(slates.item_rows_BWK[0, :50].tolist(), slates.scores_BW[0, :50].tolist(), strict=True):
        assert score == pytest.approx(scores[tuple(slate)], abs=1e-4)


def test_whatever_is_drawn_is_legal_and_as_long_as_the_catalog_allows() -> None:
    rng = np.random.default_rng(3)
    generator = tiny_generator(3, 3, "full_softmax")
    for number in range(40):
        problem = random_problem(rng, generator.spec.codebook_sizes, 3, 12)
        sampler = SlateSampler(generator, problem.catalog, temperature=1.5)
        sampler.reseed(number)
        slates = sampler.decode(problem.history, beam_width=6, **problem.restrictions())
        for request, rows_WK in enumerate(slates.item_rows_BWK.tolist()):
            available = set(problem.available(request))
            for rows_K in rows_WK:
                rows = [row for row in rows_K if row >= 0]
                assert rows_K == rows + [-1] * (3 - len(rows))
                assert len(set(rows)) == len(rows) == min(3, len(available))
                assert set(rows) <= available


def test_the_seed_decides() -> None:
    generator = tiny_generator(3, 2, "full_softmax")
    problem = random_problem(np.random.default_rng(5), generator.spec.codebook_sizes, 2, 12)
    sampler = SlateSampler(generator, problem.catalog, temperature=1.0)

    def draw(seed: int) -> torch.Tensor:
        sampler.reseed(seed)
        return sampler.decode(problem.history, beam_width=20).item_rows_BWK

    first = draw(1)
    assert not torch.equal(first, draw(2))
    assert torch.equal(first, draw(1))
