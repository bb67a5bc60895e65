"""One step of the search: legality by counting rows, and how children are scored."""

import numpy as np
import pytest
import torch
from search_problems import SCORE_MODES, make_catalog

from model_export.search.candidates import (
    DEAD,
    Candidates,
    Excluded,
    Filters,
    child_logprobs,
    child_of_rows,
    open_nodes,
    open_root,
    take,
)
from model_export.search.choice import Distinct, Places, Select, SelectRoot
from model_export.search.pieces import Finish, Spread
from service.inference.runner import DEAD_SCORE


def random_step(rng: np.random.Generator) -> Candidates:
    """Five candidates of each of 2 x 3 beams, the first always a child."""
    code_BWC = torch.from_numpy(np.sort(rng.permuted(np.tile(np.arange(7), (2, 3, 1)), axis=2)[:, :, :5], 2))
    exists_BWC = torch.arange(5) < torch.from_numpy(rng.integers(1, 6, (2, 3, 1)))
    return candidates_of(torch.where(exists_BWC, code_BWC, 0), exists_BWC)


def candidates_of(code_BWC: torch.Tensor, exists_BWC: torch.Tensor) -> Candidates:
    """Candidates that are allowed."""
    child_BWC = torch.where(exists_BWC, 0, -1).to(torch.int32)
    return Candidates(child_BWC=child_BWC, code_BWC=code_BWC, dead_BWC=torch.zeros(code_BWC.shape))


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_children_share_at_most_the_whole_probability(score_mode: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        candidates = random_step(rng)
        logits_BWV = torch.from_numpy(rng.normal(size=(2, 3, 7)) * 4).float()
        share_BWC = child_logprobs(logits_BWV, candidates, score_mode).exp()
        sum_BW = (share_BWC * (candidates.child_BWC >= 0)).sum(-1)
        if score_mode == "legal_softmax":
            torch.testing.assert_close(sum_BW, torch.ones(2, 3), atol=1e-5, rtol=0)
        else:
            assert torch.all(sum_BW < 1)  # two codes of seven at least have no child
            expected_BWC = logits_BWV.softmax(-1).gather(2, candidates.code_BWC)
            torch.testing.assert_close(share_BWC, expected_BWC, atol=1e-6, rtol=0)


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_filters_do_not_renormalise(score_mode: str) -> None:
    """Logprobs know the catalog alone: `child_logprobs` is not told what is allowed, only what exists."""
    code_BWC, exists_BWC = torch.tensor([[[1, 4, 6]]]), torch.tensor([[[True, True, False]]])
    logits_BWV = torch.arange(7.0)[None, None]
    logprob_BWC = child_logprobs(logits_BWV, candidates_of(code_BWC, exists_BWC), score_mode)
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
    change_BX = torch.from_numpy(-counts_BX.astype(np.int32))
    trie = catalog.trie
    cumsum = torch.from_numpy(np.pad(allowed_FN.cumsum(1), ((0, 0), (1, 0))).astype(np.int32))
    filters = Filters(cumsum, torch.from_numpy(slots_B.astype(np.int32)))
    excluded_child_BX = _child_of(trie, level, excluded_BX)
    _check_child_of_rows(trie, level, excluded_BX)
    excluded_child_BWX = Spread()(torch.from_numpy(excluded_child_BX), torch.zeros(4))
    change_BWX = Spread()(change_BX, torch.zeros(4))
    candidates = open_nodes(
        torch.from_numpy(nodes_BW).to(torch.int32),
        torch.from_numpy(_child_of(trie, level, chosen_BWR)),
        tuple(torch.from_numpy(array) for array in (
            trie.child_begin[level], trie.child_code[level], trie.child_row[level], catalog.child_groups[level]
        )),
        torch.arange(-1, trie.max_branch[level] + 4, dtype=torch.int32).clamp(min=0),  # roomier than any node
        Excluded(excluded_child_BWX, change_BWX),
        filters,
        torch.full((2, 4, 1), -2),
    )  # fmt: skip
    root = open_root(
        torch.from_numpy(excluded_BX),
        change_BX,
        torch.from_numpy(catalog.sids_NL[np.maximum(excluded_BX, 0), 0]).to(torch.int64),
        *(torch.from_numpy(array) for array in (trie.child_code[0], trie.child_row[0], catalog.child_groups[0])),
        filters,
        6,
    )
    assert root.excluded_child_BX.tolist() == _child_of(trie, 0, excluded_BX).tolist()
    for request in range(2):
        _check_root(root, request, catalog, excluded[request], allowed_FN[slots_B[request]])
        for beam in range(4):
            node = nodes_BW[request, beam]
            first = int(trie.child_begin[level][node])
            children = range(first, int(trie.child_begin[level][node + 1]))
            child_C = candidates.child_BWC[request, beam].tolist()
            assert [child for child in child_C if child >= 0] == list(children)
            is_legal_C = candidates.dead_BWC[request, beam] > DEAD / 2
            for place, child in enumerate(child_C):
                if child < 0:
                    assert not is_legal_C[place]
                    continue
                rows = range(int(trie.child_row[level][child]), int(trie.child_row[level][child + 1]))
                free = [
                    row
                    for row in rows
                    if allowed_FN[slots_B[request], row]
                    and row not in excluded[request]
                    and row not in chosen_BWR[request, beam]
                ]
                assert int(candidates.code_BWC[request, beam, place]) == catalog.sids_NL[rows[0], level]
                assert bool(is_legal_C[place]) == bool(free)


def _child_of(trie, level, rows):  # type: ignore[no-untyped-def]
    """By looking for the child that holds each row; -1 for none."""
    found = np.searchsorted(trie.child_row[level], np.maximum(rows, 0), side="right") - 1
    return np.where(rows >= 0, found, -1).astype(np.int32)


def _check_child_of_rows(trie, level, rows_BX) -> None:  # type: ignore[no-untyped-def]
    """Level by level from the root, as the search walks."""
    child_BX = torch.from_numpy(_child_of(trie, 0, rows_BX))
    for below in range(1, level + 1):
        begin, row = (torch.from_numpy(array[below]) for array in (trie.child_begin, trie.child_row))
        branch_C = torch.arange(trie.max_branch[below] + 2, dtype=torch.int32)
        child_BX = child_of_rows(torch.from_numpy(rows_BX), child_BX, begin, row, branch_C)
        assert child_BX.tolist() == _child_of(trie, below, rows_BX).tolist()


def _check_root(root, request, catalog, excluded, allowed_N) -> None:  # type: ignore[no-untyped-def]
    codes = catalog.trie.child_code[0].tolist()
    for code in range(6):
        rows = np.flatnonzero(catalog.sids_NL[:, 0] == code)
        free = [row for row in rows if allowed_N[row] and row not in excluded]
        assert int(root.child_V[code]) == (codes.index(code) if len(rows) else -1)
        assert int(root.left_BV[request, code]) == len(free)
        assert float(root.dead_BV[request, code]) == (0 if free else pytest.approx(DEAD))
        assert float(root.absent_V[code]) == (0 if len(rows) else pytest.approx(DEAD))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_take_is_indexing(dtype: torch.dtype) -> None:
    index = torch.tensor([[2, 0], [1, 2]], dtype=dtype)
    for values in (torch.arange(3, dtype=torch.int32) * 7, torch.arange(6.0).view(3, 2)):
        assert torch.equal(take(values, index), values[index.long()])


def test_more_beams_than_children_are_dead_and_harmless() -> None:
    total_BWC = torch.tensor([[[-1.0, DEAD], [-3.0, -2.0]]])
    logprob_BWC = torch.tensor([[[-0.5, -0.6], [-0.7, -0.8]]])
    child_BWC = torch.tensor([[[4, 5], [9, 10]]])
    base, kept, beams_U = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-7.0, -7.0]]), torch.zeros(7)
    parents, *behind = Places()(torch.zeros(1, dtype=torch.int32), torch.zeros(2), torch.zeros(3))
    score, parent, child, logprob = Select()(total_BWC, logprob_BWC, child_BWC, base, kept, parents, beams_U, *behind)
    assert score[0].tolist() == [-2, -4, -5] + [pytest.approx(DEAD)] * 4
    assert parent[0, :3].tolist() == [0, 1, 1]
    assert child[0, :3].tolist() == [4, 10, 9]
    torch.testing.assert_close(logprob[0, :3], torch.tensor([-0.5, -0.8, -0.7]))
    assert int(parent.max()) < 2


def test_a_beam_without_a_candidate_goes_on_alone() -> None:
    total = torch.tensor([[[DEAD, DEAD], [-3.0, -2.0]]])
    logprob, base, kept = torch.full((1, 2, 2), -0.5), torch.tensor([[-1.0, -1.0]]), torch.tensor([[-3.5, -0.1]])
    beams_U = torch.zeros(4)
    parents, *behind = Places()(torch.zeros(1, dtype=torch.int32), torch.zeros(2), torch.zeros(3))
    inner = Select()(total, logprob, torch.tensor([[[4, 5], [9, 10]]]), base, kept, parents, beams_U, *behind)
    root = SelectRoot()(total, logprob, torch.tensor([4, 5]), base, kept, torch.tensor([[0, 0]]), beams_U, parents)
    for (score, parent, child, found), children in ((inner, [10, -1, 9]), (root, [5, -1, 4])):
        assert score[0].tolist() == [-3.0, -3.5, -4.0, pytest.approx(DEAD)]
        assert parent[0, :3].tolist() == [1, 0, 1]
        assert child[0, :3].tolist() == children
        assert found[0, :3].tolist() == [-0.5, 0.0, -0.5]  # nothing was written


def test_a_beam_that_ended_before_takes_no_code_of_the_root() -> None:
    total, base, kept = (
        torch.tensor([[[-1.0, -2.0], [-3.0, -2.0]]]),
        torch.tensor([[-0.5, -1.0]]),
        torch.tensor([[-0.5, -9]]),
    )
    score, parent, child, _ = SelectRoot()(
        total,
        total,
        torch.tensor([4, 5]),
        base,
        kept,
        torch.tensor([[-1, 0]]),
        torch.zeros(3),
        torch.tensor([0, 0, 1, 1]),
    )
    assert score[0].tolist() == [-0.5, -3.0, -4.0]
    assert parent[0].tolist() == [0, 1, 1]
    assert child[0].tolist() == [-1, 5, 4]


def test_one_order_of_each_set_goes_on() -> None:
    trail_NP = torch.tensor([[-1, -1, 3, 5], [-1, -1, 3, 7], [-1, -1, 4, 9]], dtype=torch.int32)
    score = torch.tensor([[-1.0, -2.0, -3.0, -4.0, DEAD, DEAD]])
    parent, child = torch.tensor([[0, 1, 2, 2, 0, 0]]), torch.tensor([[7, 5, 5, 7, 0, 0]])
    logprob = torch.arange(6.0)[None]
    kept = Distinct()(score, parent, child.to(torch.int32), logprob, trail_NP, torch.tensor([1, 3]), torch.zeros(4))
    assert kept[0][0].tolist() == [-1, -3, -4, pytest.approx(DEAD)]  # {5, 7} once, {5, 9}, {7, 9}
    assert kept[1][0, :3].tolist() == [0, 2, 2]
    assert kept[2][0, :3].tolist() == [7, 5, 7]
    assert kept[3][0, :3].tolist() == [0, 2, 3]


def test_a_dead_beam_shows_nothing() -> None:
    trail_NP = torch.tensor([[-1, -1, 2, 5, 2, 6], [-1, -1, 3, 7, 4, 8]], dtype=torch.int32)
    items_R, settled_N1 = torch.tensor([1, 3, 5]), torch.tensor([[-7.0], [-7.0]])
    rows, valid, logprobs, scores = Finish(2)(
        torch.tensor([[-1.0, DEAD]]), trail_NP, torch.full((2, 5), -9.0), items_R, settled_N1
    )
    assert rows.tolist() == [[[5, 6], [-1, -1]]]
    assert valid.tolist() == [[[True, True], [False, False]]]
    assert logprobs[0, 1].abs().sum() == 0
    assert logprobs.shape == (1, 2, 2, 2)
    assert scores[0, 1].item() == DEAD_SCORE


def test_the_dead_score_is_the_one_that_the_runner_promises() -> None:
    assert np.float32(DEAD) == DEAD_SCORE
