"""The training loss is what the search reports, in both score modes."""

import numpy as np
import pytest
import torch
from search_problems import (
    SCORE_MODES,
    TOLERANCE,
    Oracle,
    Problem,
    make_catalog,
    make_history,
    one_request,
    random_problem,
    repeat_request,
    tiny_generator,
)

from model_export.model.losses import next_code_loss
from model_export.model.trie import TriePaths
from model_export.search.eager import BeamSearch

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_levels", [1, 2, 3])
@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_the_loss_of_a_slate_is_what_the_search_says_it_scores(score_mode: str, num_levels: int) -> None:
    rng = np.random.default_rng(num_levels)
    generator = tiny_generator(num_levels, 3, score_mode, num_experts=3)
    num_compared = 0
    for _ in range(8):
        problem = random_problem(rng, generator.spec.codebook_sizes, 6, most_items=12, padding=2)
        slates = BeamSearch(generator, problem.catalog).decode(problem.history, beam_width=4, **problem.restrictions())
        paths = TriePaths.of(problem.catalog, CPU)
        for request in range(6):
            live = slates.scores_BW[request] > -1e29
            rows_BK = slates.item_rows_BWK[request][live].long()
            codes_BKL = torch.from_numpy(problem.catalog.sids_NL).long()[rows_BK.clamp(min=0)]
            with torch.inference_mode():
                logits = generator(repeat_request(problem.history, request, len(rows_BK)), codes_BKL)
                loss_BKL = next_code_loss(logits, rows_BK, codes_BKL, paths, score_mode)  # type: ignore[arg-type]
            assert torch.all(loss_BKL[rows_BK < 0] == 0)
            torch.testing.assert_close(-loss_BKL, slates.level_logprobs_BWKL[request][live], atol=TOLERANCE, rtol=0)
            num_compared += int((rows_BK >= 0).sum())
    assert num_compared > 50


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_the_loss_agrees_with_plain_numpy(score_mode: str) -> None:
    generator = tiny_generator(3, 2, score_mode, seed=2)
    # Uneven: a lonely branch, a node with every code, nodes with one child.
    catalog = make_catalog([(0, 0, 0), (1, 0, 2), (1, 1, 0), (1, 1, 1), (1, 1, 2), (3, 2, 1)])
    history = make_history([[((3, 2, 4), 1, 60_000, 2.0)]], 3)
    problem = Problem(
        catalog=catalog, history=history, excluded=(frozenset(),), allowed_FN=np.ones((1, 6), dtype=bool), slots=(0,)
    )
    oracle = Oracle(generator, problem, 0, 2)
    paths = TriePaths.of(catalog, CPU)
    for slate in oracle.all_slates():
        codes_BKL = torch.from_numpy(catalog.sids_NL[list(slate)]).long()[None]
        with torch.inference_mode():
            logits = generator(one_request(history, 0), codes_BKL)
            loss = next_code_loss(logits, torch.tensor([slate]), codes_BKL, paths, score_mode)  # type: ignore[arg-type]
        np.testing.assert_allclose(-loss[0].numpy(), oracle.level_logprobs(slate), atol=TOLERANCE)


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_a_place_after_the_end_has_no_loss_and_no_gradient(score_mode: str) -> None:
    catalog = make_catalog([(0, 0), (1, 2), (3, 1)])
    paths = TriePaths.of(catalog, CPU)
    logits = [torch.randn(2, 3, size, requires_grad=True) for size in (4, 3)]
    rows_BK = torch.tensor([[2, 0, -1], [-1, -1, -1]])
    codes_BKL = torch.from_numpy(catalog.sids_NL).long()[rows_BK.clamp(min=0)]
    loss_BKL = next_code_loss(logits, rows_BK, codes_BKL, paths, score_mode)  # type: ignore[arg-type]
    loss_BKL.sum().backward()
    for level in logits:
        assert level.grad is not None
        assert torch.isfinite(level.grad).all()
        assert torch.all(level.grad[0, 2] == 0)
        assert torch.all(level.grad[1] == 0)
    # A node with one child is no choice under legal_softmax, and costs nothing.
    assert torch.all((loss_BKL[0, :2, 1] == 0) == (score_mode == "legal_softmax"))


def test_paths_name_the_node_of_every_row_at_every_depth() -> None:
    catalog = make_catalog([(0, 0), (0, 2), (1, 1), (3, 0), (3, 1)])
    paths = TriePaths.of(catalog, CPU)
    assert paths.node_NL.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [0, 2, 3], [0, 2, 4]]
    assert paths.max_branch == (3, 2)
