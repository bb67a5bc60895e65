"""Explanations against exhaustive scoring: what was chosen, and which legal codes came next."""

from random import Random

import numpy as np
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from search_problems import TOLERANCE, Oracle, Problem
from test_search_exact import searches

from model_export.search.driver import trie_inputs
from model_export.search.eager import BeamSearch
from model_export.search.forced import NUM_RUNNER_UPS, ForcedPieces

DEAD = np.float32(-1e30)


@settings(deadline=None, max_examples=120)
@given(searches(ties=False), st.randoms(use_true_random=False))
def test_the_chosen_codes_and_the_runner_ups_are_those_of_exhaustive_scoring(
    searched: tuple[BeamSearch, Problem, int], random: Random
) -> None:
    search, problem, num_items = searched
    oracles = [Oracle(search.generator, problem, request, num_items) for request in range(problem.num_requests)]
    slates = [_legal_slate(oracle, random) for oracle in oracles]
    forced_BK = torch.tensor([[*slate, *[-1] * (num_items - len(slate))] for slate in slates], dtype=torch.int32)
    trie = {name: search._inputs[name] for name in trie_inputs(search.generator.spec.num_levels)}
    forced = ForcedPieces(search._pieces, forced_BK, trie, search.generator.spec.num_levels)
    search._pieces = forced  # type: ignore[assignment]
    found = search.decode(problem.history, beam_width=1, num_items=num_items, **problem.restrictions())
    codes_BKLR, logprobs_BKLR = (value.numpy() for value in forced.runner_ups().values())
    assert found.item_rows_BWK[:, 0].tolist() == forced_BK.tolist()
    assert found.item_valid_BWK[:, 0].tolist() == (forced_BK >= 0).tolist()
    for request, (oracle, slate) in enumerate(zip(oracles, slates, strict=True)):
        chosen_KL = found.level_logprobs_BWKL[request, 0].numpy()
        np.testing.assert_allclose(chosen_KL[: len(slate)], oracle.level_logprobs(slate), atol=TOLERANCE)
        assert (chosen_KL[len(slate) :] == 0).all()
        assert (codes_BKLR[request, len(slate) :] == -1).all()
        for position, row in enumerate(slate):
            for level in range(chosen_KL.shape[1]):
                rivals = runner_ups(oracle, problem, slate[:position], row, level)
                event(f"{min(len(rivals), NUM_RUNNER_UPS)} runner-ups")
                codes_R, logprobs_R = codes_BKLR[request, position, level], logprobs_BKLR[request, position, level]
                best = sorted(rivals.values(), reverse=True)[:NUM_RUNNER_UPS]
                np.testing.assert_allclose(logprobs_R[: len(best)], best, atol=TOLERANCE)
                assert (codes_R[len(best) :] == -1).all()
                assert (logprobs_R[len(best) :] == DEAD).all()
                # Near ties may come in either order, but each code has its own logprob.
                named = codes_R[: len(best)].tolist()
                assert len(set(named)) == len(named)
                np.testing.assert_allclose(logprobs_R[: len(best)], [rivals[code] for code in named], atol=TOLERANCE)


def _legal_slate(oracle: Oracle, random: Random) -> tuple[int, ...]:
    """Any; it may end before it must."""
    slate: tuple[int, ...] = ()
    for _ in range(random.choice([oracle.length, oracle.length, random.randint(0, oracle.length)])):
        if next_rows := [row for row in oracle.available if oracle.may_follow(slate, row)]:
            slate = (*slate, random.choice(next_rows))
    return slate


def runner_ups(oracle: Oracle, problem: Problem, before: tuple[int, ...], row: int, level: int) -> dict[int, float]:
    """Every other code that leads to an item which may be shown next, and its logprob."""
    sids = [tuple(sid) for sid in problem.catalog.sids_NL.tolist()]
    prefix = sids[row][:level]
    legal = {
        sids[other][level]
        for other in oracle.available
        if oracle.may_follow(before, other) and sids[other][:level] == prefix
    }
    return {code: oracle.logprob(before, prefix, code) for code in legal - {sids[row][level]}}
