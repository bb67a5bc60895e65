"""Sampled slates against the policy, every slate of which is enumerated.

Legend: B requests (one per seed), W beams, K slate size.
"""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from search_problems import (
    SCORE_MODES,
    Oracle,
    Problem,
    Sequence_,
    make_catalog,
    make_history,
    random_problem,
    repeat_request,
    rows_of,
    tiny_generator,
)
from test_search_legality import check_legality

from model_export.search.eager import BeamSearch, Slates

SIDS = [(0, 0), (0, 2), (1, 1), (2, 0), (3, 0), (3, 1), (3, 2)]
GROUPS = ["a", "", "a", "b", "b", "a", "b"]
EVENTS = [[((2, 3), 1, 5000, 2.0)]]
NUM_SEEDS = 12_000
LOWEST = 1e-3
"""Of the p-values: seeds are fixed, so what passes once passes always."""


def policy(oracle: Oracle, problem: Problem, temperature: float) -> dict[Sequence_, float]:
    """The probability of every slate: the product of its codes' shares among those that were legal."""
    sids = [tuple(sid) for sid in problem.catalog.sids_NL.tolist()]
    groups_N = problem.catalog.groups_N.tolist()
    limit = problem.limits[0] if problem.limits else 0
    shares: dict[Sequence_, float] = defaultdict(float)

    def is_legal(rows: Sequence_, prefix: tuple[int, ...]) -> bool:
        below = [row for row, sid in enumerate(sids) if sid[: len(prefix)] == prefix]
        groups = {groups_N[row] for row in below}
        is_full = len(groups) == 1 and -1 not in groups and limit > 0
        is_full = is_full and [groups_N[row] for row in rows].count(min(groups)) >= limit
        return not is_full and any(row in oracle.available and row not in rows for row in below)

    def grow(rows: Sequence_, prefix: tuple[int, ...], share: float) -> None:
        if len(prefix) == len(sids[0]):
            rows, prefix = (*rows, sids.index(prefix)), ()
        if len(rows) == oracle.asked:
            shares[rows] += share
            return
        codes = sorted({sid[len(prefix)] for sid in sids if sid[: len(prefix)] == prefix})
        codes = [code for code in codes if is_legal(rows, (*prefix, code))]
        if not codes:
            shares[rows] += share  # a dead end
            return
        logit_C = np.array([oracle.logprob(rows, prefix, code) for code in codes])
        if not prefix:
            logit_C -= [oracle.cost(rows, code) for code in codes]
        share_C = np.exp(logit_C / temperature - np.logaddexp.reduce(logit_C / temperature))
        for code, one in zip(codes, share_C.tolist(), strict=True):
            grow(rows, (*prefix, code), share * one)

    grow((), (), 1.0)
    assert sum(shares.values()) == pytest.approx(1)
    return shares


def a_problem(*, limit: int = 0, diversity: float = 0.0, excluded: tuple[int, ...] = (4,)) -> Problem:
    problem = Problem(
        catalog=make_catalog(SIDS, GROUPS),
        history=make_history(EVENTS, 2),
        excluded=(frozenset(excluded),),
        allowed_FN=np.array([[True, True, True, True, True, True, False]]),
        slots=(0,),
        limits=(limit,),
        diversities=(diversity,),
    )
    return replace(problem, history=replace(problem.history, rows_BT=rows_of(problem.history, problem.catalog)))


def draw(search: BeamSearch, problem: Problem, seeds: np.ndarray, beam_width: int, temperature: float) -> Slates:
    """The first request of the problem, once per seed."""
    alike = {
        name: torch.repeat_interleave(tensor[:1], len(seeds), 0) if name.endswith(("B", "BX")) else tensor
        for name, tensor in problem.restrictions().items()
    }
    history = repeat_request(problem.history, 0, len(seeds))
    return search.decode(
        history, beam_width=beam_width, temperature=temperature, seeds_B=torch.from_numpy(seeds), **alike
    )


def first_slates(slates: Slates) -> list[Sequence_]:
    return [tuple(row for row in rows if row >= 0) for rows in slates.item_rows_BWK[:, 0].tolist()]


def assert_drawn_from(drawn: list[Sequence_], shares: dict[Sequence_, float]) -> None:
    assert set(drawn) <= set(shares)
    observed = np.array([drawn.count(slate) for slate in shares])
    expected = np.array(list(shares.values())) * len(drawn)
    rare = expected < 5
    pooled = [np.append(counts[~rare], counts[rare].sum()) for counts in (observed, expected)]
    if pooled[1][-1] < 5:
        pooled = [counts[:-1] for counts in pooled]
        pooled[1] *= pooled[0].sum() / pooled[1].sum()
    assert len(pooled[0]) > 12
    assert stats.chisquare(*pooled).pvalue > LOWEST


@pytest.mark.parametrize("score_mode", SCORE_MODES)
@pytest.mark.parametrize(
    ("num_items", "beam_width", "temperature", "limit", "diversity"),
    [(2, 1, 3.0, 0, 0.0), (2, 6, 2.0, 0, 0.0), (2, 3, 4.0, 1, 0.0), (2, 2, 3.0, 2, 1.5), (3, 5, 5.0, 0, 0.0),
     (3, 4, 4.0, 1, 2.0)],
)  # fmt: skip
def test_the_first_slate_is_a_draw_from_the_policy(
    score_mode: str, num_items: int, beam_width: int, temperature: float, limit: int, diversity: float
) -> None:
    search = BeamSearch(tiny_generator(2, num_items, score_mode, seed=1), make_catalog(SIDS, GROUPS))
    problem = a_problem(limit=limit, diversity=diversity)
    shares = policy(Oracle(search.generator, problem, 0, num_items), problem, temperature)
    slates = draw(search, problem, np.arange(NUM_SEEDS), beam_width, temperature)
    assert_drawn_from(first_slates(slates), shares)


@pytest.mark.parametrize("limit", [0, 1])
def test_propensities_are_the_policys_probabilities(limit: int) -> None:
    search = BeamSearch(tiny_generator(2, 3, "full_softmax", seed=1), make_catalog(SIDS, GROUPS))
    problem = a_problem(limit=limit, diversity=0.7)
    oracle = Oracle(search.generator, problem, 0, 3)
    shares = policy(oracle, problem, 1.7)
    begins: dict[Sequence_, float] = defaultdict(float)
    for slate, share in shares.items():
        for length in range(len(slate) + 1):
            begins[slate[:length]] += share
    slates = draw(search, problem, np.arange(200), 6, 1.7)
    assert slates.level_log_propensities_BWKL is not None
    item_BWK = slates.level_log_propensities_BWKL.double().sum(3).numpy()
    num_short = 0
    for request in range(200):
        for beam, rows_K in enumerate(slates.item_rows_BWK[request].tolist()):
            rows = tuple(row for row in rows_K if row >= 0)
            num_short += 0 < len(rows) < 3
            for length in range(len(rows) + 1):
                found = np.exp(item_BWK[request, beam, :length].sum())
                assert found == pytest.approx(begins[rows[:length]], rel=2e-4)
            if rows and not limit:
                logprobs_KL = slates.level_logprobs_BWKL[request, beam].numpy()
                np.testing.assert_allclose(logprobs_KL, oracle.level_logprobs(rows), atol=1e-4)
    assert bool(num_short) == bool(limit)


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_two_beams_are_two_draws_without_replacement(score_mode: str) -> None:
    search = BeamSearch(tiny_generator(2, 1, score_mode, seed=1), make_catalog(SIDS, GROUPS))
    problem = a_problem(excluded=())
    single = {rows[0]: share for rows, share in policy(Oracle(search.generator, problem, 0, 1), problem, 3.0).items()}
    pairs = {
        (one, other): share * single[other] / (1 - share)
        for one, share in single.items()
        for other in single
        if one != other
    }
    slates = draw(search, problem, np.arange(NUM_SEEDS), 2, 3.0)
    assert_drawn_from([tuple(rows) for rows in slates.item_rows_BWK[:, :, 0].tolist()], pairs)
    assert (slates.scores_BW.diff(dim=1) <= 0).all()


def test_the_seed_decides_whoever_shares_the_batch() -> None:
    generator = tiny_generator(3, 3, "full_softmax")
    problem = random_problem(np.random.default_rng(6), generator.spec.codebook_sizes, 1, 25)
    problem = replace(problem, excluded=(frozenset(),), allowed_FN=np.ones_like(problem.allowed_FN))
    search = BeamSearch(generator, problem.catalog)
    seeds = np.array([3, 2**32 - 1, 3, 7, 8, 3])
    together = draw(search, problem, seeds, 4, 1.0)
    first = together.item_rows_BWK
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[0], first[5])
    assert len({str(rows) for rows in first[:, 0].tolist()}) > 2
    for place, seed in enumerate(seeds):
        alone = draw(search, problem, np.array([seed]), 4, 1.0)
        assert torch.equal(alone.item_rows_BWK[0], first[place])


def test_a_temperature_near_zero_draws_the_greedy_slate() -> None:
    search = BeamSearch(tiny_generator(2, 2, "legal_softmax", seed=1), make_catalog(SIDS, GROUPS))
    problem = a_problem()
    greedy = search.decode(problem.history, beam_width=1, **problem.restrictions()).item_rows_BWK[0, 0].tolist()
    slates = draw(search, problem, np.arange(300), 3, 0.01)
    assert all(rows == greedy for rows in slates.item_rows_BWK[:, 0].tolist())
    assert slates.level_log_propensities_BWKL is not None
    assert slates.level_log_propensities_BWKL[:, 0].abs().max() < 0.01


def test_sampled_slates_are_legal_and_complete() -> None:
    rng = np.random.default_rng(5)
    for number in range(8):
        sizes = ((4, 3, 3), (6, 5), (40,), (2, 2, 2, 2))[number % 4]
        generator = tiny_generator(len(sizes), 4, SCORE_MODES[number % 2], codebook_sizes=sizes, seed=number)
        problem = random_problem(rng, sizes, 256, most_items=40, has_caps=True)
        slates = BeamSearch(generator, problem.catalog).decode(
            problem.history, beam_width=1 + number % 3, temperature=1.5, **problem.restrictions()
        )
        check_legality(slates, problem)
