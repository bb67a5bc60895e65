"""The preference losses against closed forms, and slates' logprobs against the search."""

import math

import numpy as np
import pytest
import torch
from search_problems import SCORE_MODES, TOLERANCE, random_problem, tiny_generator

from model_export.align.config import AlignConfig
from model_export.align.losses import (
    DpoLoss,
    GroupLoss,
    SlateGroups,
    best_and_worst,
    group_advantages,
    preference_figures,
    preference_loss,
    slate_logprobs,
)
from model_export.model.trie import TriePaths
from model_export.search.eager import BeamSearch


def pairs_of(policy_PS: torch.Tensor, reference_PS: torch.Tensor) -> SlateGroups:
    reward_PS = torch.tensor([[1.0, 0.0]]).expand(len(policy_PS), -1)
    return SlateGroups(policy_PS=policy_PS, reference_PS=reference_PS, reward_PS=reward_PS)


@pytest.mark.parametrize("beta", [0.05, 1.0, 7.0])
def test_loss_and_gradient_are_those_of_the_paper(beta: float) -> None:
    rng = np.random.default_rng(0)
    policy_PS, reference_PS = rng.normal(-30, 5, (50, 2)), rng.normal(-30, 5, (50, 2))
    policy = torch.tensor(policy_PS, requires_grad=True)
    loss_P = DpoLoss(beta)(pairs_of(policy, torch.tensor(reference_PS)))
    loss_P.sum().backward()
    margin_P = beta * ((policy_PS - reference_PS)[:, 0] - (policy_PS - reference_PS)[:, 1])
    np.testing.assert_allclose(loss_P.detach().numpy(), np.logaddexp(0.0, -margin_P), rtol=1e-9)
    # Equation 7 of the DPO paper: each pair pulls by beta times the probability that the policy has it wrong.
    wrong_P = 1 / (1 + np.exp(margin_P))
    assert policy.grad is not None
    np.testing.assert_allclose(policy.grad[:, 0].numpy(), -beta * wrong_P, rtol=1e-9)
    np.testing.assert_allclose(policy.grad[:, 1].numpy(), beta * wrong_P, rtol=1e-9)


def test_its_optimum_is_the_reference_tilted_by_the_reward() -> None:
    """With preferences from a Bradley-Terry model of rewards r the optimal policy is reference x exp(r / beta) / Z."""
    beta = 0.5
    reward_N = torch.tensor([0.3, -0.5, 0.9, 0.0], dtype=torch.float64)
    reference_N = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64).log()
    left_P, right_P = torch.tensor([(a, b) for a in range(4) for b in range(4) if a != b]).T
    preferred_P = (reward_N[left_P] - reward_N[right_P]).sigmoid()
    logits_N = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits_N], max_iter=200, tolerance_grad=1e-12)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        policy_N = logits_N.log_softmax(0)
        both = (torch.stack([values[left_P], values[right_P]], 1) for values in (policy_N, reference_N))
        total = (preferred_P * DpoLoss(beta)(pairs_of(*both))).sum()
        total.backward()
        return total

    optimizer.step(loss)
    expected_N = (reference_N + reward_N / beta).softmax(0)
    torch.testing.assert_close(logits_N.detach().softmax(0), expected_N, atol=1e-5, rtol=0)


def group_gradient(loss: GroupLoss, shift_S: list[float], reward_S: list[float]) -> list[float]:
    """Of one group, with respect to the policy's logprobs."""
    policy_PS = torch.tensor([shift_S], dtype=torch.float64, requires_grad=True)
    groups = SlateGroups(
        policy_PS=policy_PS,
        reference_PS=torch.zeros_like(policy_PS).detach(),
        reward_PS=torch.tensor([reward_S]).double(),
    )
    (gradient_PS,) = torch.autograd.grad(loss(groups).sum(), policy_PS)
    return [float(value) for value in gradient_PS[0]]


@pytest.mark.parametrize("loss", [GroupLoss(0.2), GroupLoss(0.2, 0.1)], ids=["grpo", "ecpo"])
def test_at_the_reference_it_is_the_policy_gradient(loss: GroupLoss) -> None:
    """Each slate pulls by its standardised reward, over the number of slates."""
    reward_S = [3.0, -1.0, 0.5, 0.5]
    advantage_S = (np.array(reward_S) - np.mean(reward_S)) / np.std(reward_S)
    np.testing.assert_allclose(group_gradient(loss, [0.0] * 4, reward_S), -advantage_S / 4, rtol=1e-5)


# Advantages of rewards 1 and 0 are +1 and -1, so a pull of .5 a slate times the ratio that counts.
@pytest.mark.parametrize(
    ("ratios", "grpo", "ecpo"),
    [
        ((1.1, 0.9), (-0.55, 0.45), (-0.55, 0.45)),  # inside the bounds the ratio counts
        ((1.3, 0.7), (0.0, 0.0), (0.0, 0.0)),  # moved as they should: no more to gain
        ((0.5, 1.25), (-0.25, 0.625), (-0.25, 0.625)),  # moved the wrong way: still pulled back
        ((1.0, 6.0), (-0.5, 3.0), (-0.5, 0.65)),  # far the wrong way: ECPO bounds the pull at 1.3
    ],
)
def test_where_each_loss_stops_pulling(
    ratios: tuple[float, float], grpo: tuple[float, float], ecpo: tuple[float, float]
) -> None:
    shift_S = [math.log(ratio) for ratio in ratios]
    np.testing.assert_allclose(group_gradient(GroupLoss(0.2), shift_S, [1.0, 0.0]), grpo, atol=1e-5)
    np.testing.assert_allclose(group_gradient(GroupLoss(0.2, 0.1), shift_S, [1.0, 0.0]), ecpo, atol=1e-5)


def test_from_a_clip_of_one_on_a_bad_slate_may_become_any_less_likely() -> None:
    shift_S = [math.log(3.5), math.log(0.01)]
    np.testing.assert_allclose(group_gradient(GroupLoss(2.0), shift_S, [1.0, 0.0]), (0.0, 0.005), atol=1e-5)
    np.testing.assert_allclose(group_gradient(GroupLoss(0.2), shift_S, [1.0, 0.0]), (0.0, 0.0), atol=1e-5)


@pytest.mark.parametrize("shift", [100.0, 1000.0, -1000.0])
def test_a_policy_that_has_run_away_has_a_finite_gradient(shift: float) -> None:
    for loss in (GroupLoss(0.2), GroupLoss(0.2, 0.1)):
        for shift_S in ([shift, 0.0], [0.0, shift]):
            assert np.isfinite(group_gradient(loss, shift_S, [1.0, 0.0])).all()


def test_places_without_a_slate_and_equal_rewards_pull_nothing() -> None:
    nan = math.nan
    loss = GroupLoss(0.2, 0.1)
    alone, among = group_gradient(loss, [0.1, 0.0], [2.0, 1.0]), group_gradient(loss, [0.1, 0.0, 0.3], [2.0, 1.0, nan])
    np.testing.assert_allclose(among, [*alone, 0.0], rtol=1e-9)
    assert group_gradient(loss, [0.1, -0.3], [0.7, 0.7]) == [0.0, 0.0]
    assert group_gradient(loss, [0.1, -0.3], [nan, nan]) == [0.0, 0.0]
    assert group_advantages(torch.tensor([[nan, 4.0]])).tolist() == [[0.0, 0.0]]
    reward_PS = torch.tensor([[nan, 1.0, 3.0, 2.0], [5.0, nan, 4.0, 6.0]])
    assert best_and_worst(reward_PS).tolist() == [[2, 1], [3, 2]]


def test_the_configuration_chooses_the_loss() -> None:
    assert preference_loss(AlignConfig(beta=0.3)) == DpoLoss(0.3)
    assert preference_loss(AlignConfig(objective="grpo", clip=0.1)) == GroupLoss(0.1)
    assert preference_loss(AlignConfig(objective="ecpo", early_clip=0.2)) == GroupLoss(0.2, 0.2)


def test_figures_tell_displacement_from_learning() -> None:
    reference_PS = torch.tensor([[-10.0, -10.0], [-10.0, -10.0]])
    policy_PS = torch.tensor([[-12.0, -16.0], [-11.0, -9.0]])
    figures = preference_figures(pairs_of(policy_PS, reference_PS))
    assert figures["accuracy"] == 0.5
    assert figures["margin"] == 1.0
    assert figures["chosen_shift"] == -1.5
    assert figures["rejected_shift"] == -2.5
    assert figures["chosen_logprob"] == -11.5


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_logprobs_of_slates_are_the_scores_of_the_search(score_mode: str) -> None:
    rng = np.random.default_rng(1)
    generator = tiny_generator(3, 3, score_mode, num_experts=2)
    num_short, total_gradient = 0, 0.0
    for _ in range(20):
        problem = random_problem(rng, generator.spec.codebook_sizes, 3, 12)
        slates = BeamSearch(generator, problem.catalog).decode(problem.history, beam_width=5, **problem.restrictions())
        rows_BWK = slates.item_rows_BWK.clone().long()
        paths = TriePaths.of(problem.catalog, torch.device("cpu"))
        sids_NL = torch.from_numpy(problem.catalog.sids_NL).long()
        logprob_BW = slate_logprobs(generator, problem.history, rows_BWK, sids_NL, paths)
        is_slate_BW = slates.item_valid_BWK[:, :, 0]
        torch.testing.assert_close(
            logprob_BW.detach()[is_slate_BW], slates.scores_BW.clone()[is_slate_BW], atol=TOLERANCE, rtol=0
        )
        num_short += int((slates.item_valid_BWK[:, :, 0] & ~slates.item_valid_BWK[:, :, -1]).sum())
        if is_slate_BW.any():
            (gradient,) = torch.autograd.grad(logprob_BW.sum(), generator.encoder.start_D)
            total_gradient += float(gradient.abs().sum())
    assert total_gradient > 0
    assert num_short > 0
