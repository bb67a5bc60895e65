"""Rollouts: the right candidates, on fresh examples every time, and the same ones after an interruption."""

from pathlib import Path

import numpy as np
import pytest
import torch
from alignment_world import NUM_ITEMS, SIDS, Taste, config_of, large_items, start, world
from training_data import build

from model_export.align.candidates import CandidateSearch
from model_export.align.objective import AlignObjective
from model_export.align.rollouts import Rollouts, choose, draw, roll_out, share_of
from model_export.progress import Progress


@pytest.mark.parametrize("rejected", ["worst", "likeliest", "random"])
def test_the_best_candidate_stands_against_the_one_asked_for(rejected: str) -> None:
    rng = np.random.default_rng(0)
    reward_BW = rng.normal(size=(200, 6)).astype(np.float32)
    reward_BW[rng.random(reward_BW.shape) < 0.3] = np.nan
    reward_BW[:, 2] = rng.normal(size=200)  # every example has a slate
    score_BW = rng.normal(size=(200, 6)).astype(np.float32)
    pair_BS = choose(config_of(rejected=rejected), reward_BW, score_BW, rng)
    drawn_B = draw(reward_BW, rng)
    for reward_W, score_W, (chosen, other), drawn in zip(reward_BW, score_BW, pair_BS, drawn_B, strict=True):
        slates = [place for place in range(6) if not np.isnan(reward_W[place])]
        assert chosen == max(slates, key=lambda place: reward_W[place])
        assert other in slates
        assert drawn in slates
        if rejected == "worst":
            assert other == min(slates, key=lambda place: reward_W[place])
        if rejected == "likeliest":
            assert other == max(slates, key=lambda place: score_W[place])
    assert len(set(drawn_B.tolist())) == 6


@pytest.mark.parametrize(("num_examples", "share"), [(10, 0.3), (7, 1.0), (100, 0.07), (3, 0.01)])
def test_every_example_has_its_turn_before_any_comes_again(num_examples: int, share: float) -> None:
    taken = np.concatenate([share_of(num_examples, share, 5, iteration) for iteration in range(20)])
    for first in range(0, len(taken) - num_examples + 1, num_examples):
        assert sorted(taken[first : first + num_examples]) == list(range(num_examples))
    assert len(taken) == 20 * max(1, round(num_examples * share))


@pytest.mark.parametrize(("candidates", "objective"), [("beam", "dpo"), ("sampled", "dpo"), ("sampled", "grpo")])
def test_rollouts_hold_the_policys_own_logprobs(tmp_path: Path, candidates: str, objective: str) -> None:
    prepared = world()
    trained = start(prepared)
    config = config_of(candidates=candidates, objective=objective, min_reward_margin=0.6)
    search = CandidateSearch(trained, prepared, kind=config.candidates)
    logprobs = AlignObjective(config, trained, prepared).logprobs
    train = prepared.examples("train")
    scorer = Taste(large_items)
    rollouts = roll_out(config, search, scorer, logprobs, train, 1, Progress())
    assert len(rollouts) > 0
    assert rollouts.row_PSK.shape[1] == {"dpo": 2, "grpo": config.num_candidates}[objective]
    taken = share_of(len(train), config.preference_share, config.seed, 1)
    assert set(rollouts.example_P.tolist()) <= set(taken.tolist())
    assert len(rollouts) / len(taken) == pytest.approx(rollouts.figures["rollout_used_share"])
    item_PSK = trained.catalog.item_of_row_N[rollouts.row_PSK]
    np.testing.assert_allclose(scorer.score(train[rollouts.example_P], item_PSK), rollouts.reward_PS)
    margin_P = rollouts.reward_PS.max(1) - rollouts.reward_PS.min(1)
    assert (margin_P > 0.6).all()
    if objective == "dpo":
        assert (rollouts.reward_PS[:, 0] > rollouts.reward_PS[:, 1]).all()
    assert rollouts.figures["rollout_reward_margin"] == pytest.approx(margin_P.mean())
    np.testing.assert_array_equal(logprobs(rollouts.example_P, rollouts.row_PSK), rollouts.reference_PS)
    drawn_P1 = logprobs(rollouts.example_P, rollouts.drawn_row_PK[:, None])
    np.testing.assert_array_equal(drawn_P1[:, 0], rollouts.drawn_reference_P)
    rollouts.save(tmp_path / "rollouts.npz")
    again = Rollouts.load(tmp_path / "rollouts.npz")
    arrays = ("example_P", "row_PSK", "reward_PS", "reference_PS", "drawn_row_PK", "drawn_reference_P")
    for name in arrays:
        np.testing.assert_array_equal(getattr(rollouts, name), getattr(again, name))
    assert again.figures == rollouts.figures
    repeated = roll_out(config, search, scorer, logprobs, train, 1, Progress())
    np.testing.assert_array_equal(rollouts.row_PSK, repeated.row_PSK)


def test_candidates_keep_to_the_repeat_policy() -> None:
    sequences = [[(user + step) % NUM_ITEMS for step in range(20)] for user in range(4)]
    prepared = build(
        sequences, NUM_ITEMS, {"valid": [(20 * user, 20 * user + 18, 20 * user + 20) for user in range(4)]}
    )
    prepared.meta["repeat_policy"] = "exclude"
    trained, valid = start(prepared), prepared.examples("valid")
    for kind in ("beam", "sampled"):
        ((batch, candidates),) = CandidateSearch(trained, prepared, kind=kind).batches(valid, 12)  # type: ignore[arg-type]
        assert len(batch) == 4
        for user, item_WK in enumerate(candidates.item_BWK):
            assert not set(item_WK.ravel().tolist()) & set(sequences[user][:18])
            is_item_WK = item_WK >= 0
            assert is_item_WK.any()
            rows = trained.catalog.row_of_item_N[item_WK[is_item_WK]]
            np.testing.assert_array_equal(rows, candidates.row_BWK[user][is_item_WK])


@pytest.mark.parametrize("kind", ["dpo", "ecpo"])
def test_users_who_have_seen_everything_are_left_out(kind: str) -> None:
    sequences = [[step % NUM_ITEMS for step in range(NUM_ITEMS + 2)], [0, 1, 2, 3]]
    prepared = build(sequences, NUM_ITEMS, {"train": [(0, NUM_ITEMS, NUM_ITEMS + 2), (26, 28, 30)]})
    prepared.meta["repeat_policy"] = "exclude"
    trained, config = start(prepared), config_of(preference_share=1.0, objective=kind)
    objective = AlignObjective(config, trained, prepared)
    search, train = CandidateSearch(trained, prepared, kind="sampled"), prepared.examples("train")
    rollouts = roll_out(config, search, Taste(large_items), objective.logprobs, train, 0, Progress())
    assert rollouts.example_P.tolist() == [1]
    assert rollouts.figures["rollout_used_share"] == 0.5


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_the_best_slates_own_likelihood_can_be_asked_for(kind: str) -> None:
    """As chosen_weight times its negative logprob per code."""
    prepared = world()
    trained = start(prepared)
    train, search = prepared.examples("train"), CandidateSearch(trained, prepared, kind="sampled")
    losses = []
    for weight in (0.0, 0.5):
        config = config_of(objective=kind, chosen_weight=weight)
        objective = AlignObjective(config, trained, prepared)
        rollouts = roll_out(config, search, Taste(large_items), objective.logprobs, train, 0, Progress())
        losses.append(float(objective.preference(rollouts, np.arange(6))[0].detach()))
    best_P = rollouts.reward_PS[:6].argmax(1)
    logprob_P = rollouts.reference_PS[np.arange(6), best_P]
    num_codes = rollouts.row_PSK.shape[2] * SIDS.shape[1]
    assert losses[1] - losses[0] == pytest.approx(-0.5 * float(logprob_P.mean()) / num_codes, abs=1e-5)


def test_equal_rewards_are_refused_with_a_way_out() -> None:
    prepared = world()
    trained = start(prepared)
    config = config_of()
    objective = AlignObjective(config, trained, prepared)
    search = CandidateSearch(trained, prepared)
    train = prepared.examples("train")
    indifferent = Taste(lambda item_BWK: np.ones(item_BWK.shape[:2]))
    broken = Taste(lambda item_BWK: np.full(item_BWK.shape[:2], np.nan))
    with pytest.raises(ValueError, match=r"align\.min_reward_margin = 0\.0: lower it"):
        roll_out(config, search, indifferent, objective.logprobs, train, 0, Progress())
    with pytest.raises(ValueError, match="not finite"):
        roll_out(config, search, broken, objective.logprobs, train, 0, Progress())


def test_dropout_does_not_touch_the_logprobs_of_slates() -> None:
    prepared = world()
    trained = start(prepared)
    objective = AlignObjective(config_of(), trained, prepared)
    example_P, row_PSK = np.arange(4), np.arange(24, dtype=np.int32).reshape(4, 3, 2)
    trained.generator.train()
    torch.manual_seed(0)
    first = objective.logprobs(example_P, row_PSK)
    np.testing.assert_array_equal(first, objective.logprobs(example_P, row_PSK))
