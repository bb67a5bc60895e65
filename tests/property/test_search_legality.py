"""Tens of thousands of random requests at narrow beams: every slate is legal, and as long as the request allows.

Legend: B requests, W beams, K slate size, N items, G groups.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from search_problems import CODEBOOK_SIZES, SCORE_MODES, Problem, random_problem, tiny_generator

from model_export.search.eager import BeamSearch, Slates

SLATE_SIZE = 4
NUM_REQUESTS = 512
NUM_CATALOGS = 24
"""Per score mode: 24,576 requests in all, each with its own history, exclusions, filter and cap."""
SIZES = (CODEBOOK_SIZES, (6, 5), (40,), (2, 2, 2, 2))


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_slates_are_legal_distinct_and_complete(score_mode: str) -> None:
    rng = np.random.default_rng(7)
    counts: Counter[str] = Counter()
    for number in range(NUM_CATALOGS):
        sizes = SIZES[number % len(SIZES)]
        generator = tiny_generator(
            len(sizes), SLATE_SIZE, score_mode, num_experts=1 + 2 * (number % 2), codebook_sizes=sizes, seed=number % 5
        )
        problem = random_problem(rng, sizes, NUM_REQUESTS, most_items=40, has_caps=True)
        slates = BeamSearch(generator, problem.catalog).decode(
            problem.history, beam_width=1 + number % 4, **problem.restrictions()
        )
        counts += check_legality(slates, problem)
    # The fuzz must have met what it is for: empty, short and whole slates, caps that bind and beams that ran into them.
    assert min(counts[f"{length} items"] for length in range(SLATE_SIZE + 1)) > 100, counts
    assert counts["at a cap"] > 1000, counts
    assert 0 < counts["cut short"] < 0.1 * counts["at a cap"], counts


def check_legality(slates: Slates, problem: Problem) -> Counter[str]:
    """Holds every beam of every request against what is allowed; counts what the best beams were like."""
    rows_BWK, valid_BWK = slates.item_rows_BWK.numpy(), slates.item_valid_BWK.numpy()
    live_BW = slates.scores_BW.numpy() > -1e29
    available_BN = available_rows(problem)
    limits_B = np.array(problem.limits or [0] * problem.num_requests)
    most_B = np.minimum(available_BN.sum(1), SLATE_SIZE)
    most_capped_B = np.minimum(most_items(problem, available_BN, limits_B), SLATE_SIZE)
    assert live_BW[:, 0].all()  # the best beam always lives, if only to say that there is nothing
    assert not np.isnan(slates.level_logprobs_BWKL.numpy()).any()
    np.testing.assert_array_equal(valid_BWK, rows_BWK >= 0)
    assert not valid_BWK[~live_BW].any()
    assert (np.diff(valid_BWK.astype(int), axis=2) <= 0).all()  # nothing after the end
    requests, beams, places = np.nonzero(valid_BWK)
    rows = rows_BWK[requests, beams, places]
    assert available_BN[requests, rows].all()
    sorted_BWK = np.sort(rows_BWK, axis=2)
    assert not ((sorted_BWK[:, :, 1:] == sorted_BWK[:, :, :-1]) & (sorted_BWK[:, :, 1:] >= 0)).any()
    groups = problem.catalog.child_groups[-1][rows]
    counts_BWG = np.zeros((*live_BW.shape, groups.max(initial=0) + 1), dtype=int)
    np.add.at(counts_BWG, tuple(part[groups >= 0] for part in (requests, beams, groups)), 1)
    has_cap_B = limits_B > 0
    assert (counts_BWG <= limits_B[:, None, None])[has_cap_B].all()
    lengths_BW = valid_BWK.sum(axis=2)
    # Without a cap no beam is shorter than it must be; a cap may lead into a dead end, but not where codes are items.
    is_exact_B = ~has_cap_B | (problem.catalog.sids_NL.shape[1] == 1)
    assert (lengths_BW == most_capped_B[:, None])[live_BW & is_exact_B[:, None]].all()
    assert (lengths_BW <= most_capped_B[:, None]).all()
    assert ((lengths_BW[:, 0] > 0) == (most_B > 0)).all()
    counts = Counter(f"{length} items" for length in lengths_BW[:, 0].tolist())
    counts["at a cap"] = int((counts_BWG[:, 0] == limits_B[:, None])[has_cap_B].any(1).sum())
    counts["cut short"] = int((lengths_BW[:, 0] < most_capped_B).sum())
    return counts


def available_rows(problem: Problem) -> npt.NDArray[np.bool_]:
    """[B, N]."""
    available_BN = problem.allowed_FN[np.array(problem.slots)]
    for request, rows in enumerate(problem.excluded):
        available_BN[request, list(rows)] = False
    return available_BN


def most_items(
    problem: Problem, available_BN: npt.NDArray[np.bool_], limits_B: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Items of the longest list [B] that each request allows under its cap."""
    groups_N = problem.catalog.child_groups[-1]
    counts_BG = available_BN.astype(int) @ (groups_N[:, None] == np.arange(groups_N.max() + 1))
    capped_BG = np.minimum(counts_BG, np.where(limits_B > 0, limits_B, SLATE_SIZE)[:, None])
    most_B: npt.NDArray[np.int64] = capped_BG.sum(1) + available_BN[:, groups_N < 0].sum(1)
    return most_B


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
