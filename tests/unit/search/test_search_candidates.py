"""One step of the search: legality by counting rows, and how children are scored."""

import numpy as np
import pytest
import torch
from search_problems import SCORE_MODES, make_catalog

from model_export.search.candidates import DEAD, child_logprobs, legal_children, take
from model_export.search.choice import Distinct, Select
from model_export.search.pieces import ExcludedCodes, Finish
from service.inference.runner import DEAD_SCORE


def random_step(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and existence of children, [2, 3, C], the first child always there."""
    code_BWC = torch.from_numpy(np.sort(rng.permuted(np.tile(np.arange(7), (2, 3, 1)), axis=2)[:, :, :5], 2))
    exists_BWC = torch.arange(5) < torch.from_numpy(rng.integers(1, 6, (2, 3, 1)))
    return torch.where(exists_BWC, code_BWC, 0), exists_BWC


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_children_share_at_most_the_whole_probability(score_mode: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        code_BWC, exists_BWC = random_step(rng)
        logits_BWV = torch.from_numpy(rng.normal(size=(2, 3, 7)) * 4).float()
        share_BWC = child_logprobs(logits_BWV, code_BWC, exists_BWC, score_mode).exp()
        sum_BW = (share_BWC * exists_BWC).sum(-1)
        if score_mode == "legal_softmax":
            torch.testing.assert_close(sum_BW, torch.ones(2, 3), atol=1e-5, rtol=0)
        else:
            assert torch.all(sum_BW < 1)  # two codes of seven at least have no child
            expected_BWC = logits_BWV.softmax(-1).gather(2, code_BWC)
            torch.testing.assert_close(share_BWC, expected_BWC, atol=1e-6, rtol=0)


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_filters_do_not_renormalise(score_mode: str) -> None:
    """Logprobs know the catalog alone: `child_logprobs` is not told what is allowed, only what exists."""
    code_BWC, exists_BWC = torch.tensor([[[1, 4, 6]]]), torch.tensor([[[True, True, False]]])
    logits_BWV = torch.arange(7.0)[None, None]
    logprob_BWC = child_logprobs(logits_BWV, code_BWC, exists_BWC, score_mode)
    total = logits_BWV.logsumexp(-1) if score_mode == "full_softmax" else torch.tensor([1.0, 4.0]).logsumexp(0)
    torch.testing.assert_close(logprob_BWC[0, 0, :2], (torch.tensor([1.0, 4.0]) - total).flatten())


def test_a_child_is_legal_while_it_holds_a_row_that_may_be_shown() -> None:
    rng = np.random.default_rng(1)
    for _ in range(120):
        sids = np.unique(np.stack([rng.integers(0, 4, 14), rng.integers(0, 3, 14), rng.integers(0, 3, 14)], 1), axis=0)
        catalog = make_catalog(sids)
        allowed_FN = rng.random((2, len(sids))) < 0.6
        slots_B = rng.integers(0, 2, 2)
        excluded = [np.flatnonzero(rng.random(len(sids)) < 0.4) for _ in range(2)]
        level = int(rng.integers(0, 3))
        starts = [np.array([0]), *catalog.trie.child_row]
        nodes_BW = rng.integers(0, max(1, len(starts[level]) - (level > 0)), (2, 4))
        chosen_BWR = np.full((2, 4, 3), -1)
        for request in range(2):
            free = np.flatnonzero(allowed_FN[slots_B[request]] & ~np.isin(np.arange(len(sids)), excluded[request]))
            for beam in range(4):
                chosen = rng.permutation(free)[: rng.integers(0, 3)]
                chosen_BWR[request, beam, 1 : 1 + len(chosen)] = chosen
        _check_step(catalog, level, nodes_BW, chosen_BWR, excluded, allowed_FN, slots_B)


def _check_step(catalog, level, nodes_BW, chosen_BWR, excluded, allowed_FN, slots_B) -> None:  # type: ignore[no-untyped-def]
    excluded_BX = np.full((2, max(map(len, excluded)) + 1), -1, dtype=np.int32)
    for request, rows in enumerate(excluded):
        excluded_BX[request, : len(rows)] = rows
    counts_BX = (excluded_BX >= 0) & allowed_FN[slots_B[:, None], np.maximum(excluded_BX, 0)]
    sids_NL = torch.from_numpy(catalog.sids_NL)
    excluded_t = torch.from_numpy(excluded_BX)
    codes_BXV = ExcludedCodes()(excluded_t, sids_NL, torch.tensor([level]), torch.zeros(4))
    trie = catalog.trie
    cumsum = torch.from_numpy(np.pad(allowed_FN.cumsum(1), ((0, 0), (1, 0))).astype(np.int32))
    first_BW, code_BWC, exists_BWC, legal_BWC, taken_BWC = legal_children(
        torch.from_numpy(nodes_BW),
        (
            torch.from_numpy(chosen_BWR.astype(np.int32)),
            take(sids_NL, torch.from_numpy(chosen_BWR).clamp(min=0))[..., level],
        ),
        torch.from_numpy(trie.child_begin[level]),
        torch.from_numpy(trie.child_row[level]),
        torch.arange(trie.max_branch[level] + 2, dtype=torch.int32),  # roomier than any node
        (excluded_t, torch.from_numpy(counts_BX), codes_BXV),
        torch.from_numpy(trie.child_code[level]),
        cumsum,
        torch.from_numpy(slots_B.astype(np.int32)),
        (torch.from_numpy(catalog.child_groups[level]), torch.full((2, 4, 1), -2)),
    )
    for request in range(2):
        for beam in range(4):
            node = nodes_BW[request, beam]
            first = int(trie.child_begin[level][node])
            children = range(first, int(trie.child_begin[level][node + 1]))
            assert int(first_BW[request, beam]) == first
            assert int(exists_BWC[request, beam].sum()) == len(children)
            for place, child in enumerate(children):
                rows = range(int(trie.child_row[level][child]), int(trie.child_row[level][child + 1]))
                free = [
                    row
                    for row in rows
                    if allowed_FN[slots_B[request], row]
                    and row not in excluded[request]
                    and row not in chosen_BWR[request, beam]
                ]
                assert int(code_BWC[request, beam, place]) == catalog.sids_NL[rows[0], level]
                assert bool(legal_BWC[request, beam, place]) == bool(free)
                taken = [row for row in rows if row in chosen_BWR[request, beam]]
                assert int(taken_BWC[request, beam, place]) == len(taken)
            assert not legal_BWC[request, beam, len(children) :].any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_take_is_indexing(dtype: torch.dtype) -> None:
    index = torch.tensor([[2, 0], [1, 2]], dtype=dtype)
    for values in (torch.arange(3, dtype=torch.int32) * 7, torch.arange(6.0).view(3, 2)):
        assert torch.equal(take(values, index), values[index.long()])


def test_more_beams_than_children_are_dead_and_harmless() -> None:
    total_BWC = torch.tensor([[[-1.0, DEAD], [-3.0, -2.0]]])
    logprob_BWC = torch.tensor([[[-0.5, -0.6], [-0.7, -0.8]]])
    score, parent, child, logprob = Select()(total_BWC, logprob_BWC, torch.tensor([[4, 9]]), torch.zeros(7))
    assert score[0].tolist() == [-1, -2, -3] + [pytest.approx(DEAD)] * 4
    assert parent[0, :3].tolist() == [0, 1, 1]
    assert child[0].tolist() == [4, 10, 9, 0, 0, 0, 0]
    torch.testing.assert_close(logprob[0, :3], torch.tensor([-0.5, -0.8, -0.7]))
    assert int(parent.max()) < 2


def test_one_order_of_each_set_goes_on() -> None:
    rows_BWR = torch.tensor([[[-1, 5], [-1, 7], [-1, 9]]], dtype=torch.int32)
    score = torch.tensor([[-1.0, -2.0, -3.0, -4.0, DEAD, DEAD]])
    parent, child = torch.tensor([[0, 1, 2, 2, 0, 0]]), torch.tensor([[7, 5, 5, 7, 0, 0]])
    logprob = torch.arange(6.0)[None]
    kept = Distinct()(score, parent, child, logprob, rows_BWR, torch.zeros(4))
    assert kept[0][0].tolist() == [-1, -3, -4, pytest.approx(DEAD)]  # {5, 7} once, {5, 9}, {7, 9}
    assert kept[1][0, :3].tolist() == [0, 2, 2]
    assert kept[2][0, :3].tolist() == [7, 5, 7]
    assert kept[3][0, :3].tolist() == [0, 2, 3]


def test_a_dead_beam_shows_nothing() -> None:
    rows_BWR = torch.tensor([[[-1, 5, 6], [-1, 7, 8]]], dtype=torch.int32)
    rows, valid, logprobs, scores = Finish(2)(
        torch.tensor([[-1.0, DEAD]]), rows_BWR, torch.full((1, 2, 5), -9.0), torch.tensor([[-7.0], [-7.0]])
    )
    assert rows.tolist() == [[[5, 6], [-1, -1]]]
    assert valid.tolist() == [[[True, True], [False, False]]]
    assert logprobs[0, 1].abs().sum() == 0
    assert logprobs.shape == (1, 2, 2, 2)
    assert scores[0, 1].item() == DEAD_SCORE


def test_the_dead_score_is_the_one_that_the_runner_promises() -> None:
    assert np.float32(DEAD) == DEAD_SCORE
