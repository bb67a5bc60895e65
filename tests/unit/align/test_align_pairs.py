"""Pairs: the right candidates, on fresh examples every time, and the same ones after an interruption."""

from pathlib import Path

import numpy as np
import pytest
import torch
from alignment_world import NUM_ITEMS, Taste, config_of, large_items, start, world
from training_data import build

from model_export.align.candidates import CandidateSearch
from model_export.align.losses import DpoLoss
from model_export.align.objective import AlignObjective
from model_export.align.pairs import CHOSEN, DRAWN, REJECTED, PreferencePairs, choose, roll_out, share_of
from model_export.progress import Progress


@pytest.mark.parametrize("rejected", ["worst", "likeliest", "random"])
def test_the_best_candidate_stands_against_the_one_asked_for(rejected: str) -> None:
    rng = np.random.default_rng(0)
    reward_BW = rng.normal(size=(200, 6)).astype(np.float32)
    reward_BW[rng.random(reward_BW.shape) < 0.3] = np.nan
    reward_BW[:, 2] = rng.normal(size=200)  # every example has a slate
    score_BW = rng.normal(size=(200, 6)).astype(np.float32)
    choice_BS = choose(reward_BW, score_BW, rejected, rng)  # type: ignore[arg-type]
    for reward_W, score_W, (chosen, other, drawn) in zip(reward_BW, score_BW, choice_BS, strict=True):
        slates = [place for place in range(6) if not np.isnan(reward_W[place])]
        assert chosen == max(slates, key=lambda place: reward_W[place])
        assert other in slates
        assert drawn in slates
        if rejected == "worst":
            assert other == min(slates, key=lambda place: reward_W[place])
        if rejected == "likeliest":
            assert other == max(slates, key=lambda place: score_W[place])
    assert len(set(choice_BS[:, DRAWN].tolist())) == 6


@pytest.mark.parametrize(("num_examples", "share"), [(10, 0.3), (7, 1.0), (100, 0.07), (3, 0.01)])
def test_every_example_has_its_turn_before_any_comes_again(num_examples: int, share: float) -> None:
    taken = np.concatenate([share_of(num_examples, share, 5, iteration) for iteration in range(20)])
    for first in range(0, len(taken) - num_examples + 1, num_examples):
        assert sorted(taken[first : first + num_examples]) == list(range(num_examples))
    assert len(taken) == 20 * max(1, round(num_examples * share))


@pytest.mark.parametrize("candidates", ["beam", "sampled"])
def test_rollouts_give_pairs_with_the_policys_own_logprobs(tmp_path: Path, candidates: str) -> None:
    prepared = world()
    trained = start(prepared)
    config = config_of(candidates=candidates, min_reward_margin=0.6)
    search = CandidateSearch(trained, prepared, kind=config.candidates)
    objective = AlignObjective(config, trained, prepared, DpoLoss(0.1))
    train = prepared.examples("train")
    scorer = Taste(large_items)
    pairs = roll_out(config, search, scorer, objective.logprobs, train, 1, Progress())
    assert len(pairs) > 0
    taken = share_of(len(train), config.preference_share, config.seed, 1)
    assert set(pairs.example_P.tolist()) <= set(taken.tolist())
    assert len(pairs) / len(taken) == pytest.approx(pairs.figures["rollout_pair_share"])
    item_PSK = trained.catalog.item_of_row_N[pairs.row_PSK]
    np.testing.assert_allclose(scorer.score(train[pairs.example_P], item_PSK), pairs.reward_PS)
    margin_P = pairs.reward_PS[:, CHOSEN] - pairs.reward_PS[:, REJECTED]
    assert (margin_P > 0.6).all()
    assert pairs.figures["rollout_reward_margin"] == pytest.approx(margin_P.mean())
    np.testing.assert_array_equal(objective.logprobs(pairs.example_P, pairs.row_PSK), pairs.reference_PS)
    pairs.save(tmp_path / "pairs.npz")
    again = PreferencePairs.load(tmp_path / "pairs.npz")
    for name in ("example_P", "row_PSK", "reward_PS", "reference_PS"):
        np.testing.assert_array_equal(getattr(pairs, name), getattr(again, name))
    assert again.figures == pairs.figures
    repeated = roll_out(config, search, scorer, objective.logprobs, train, 1, Progress())
    np.testing.assert_array_equal(pairs.row_PSK, repeated.row_PSK)


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


def test_users_who_have_seen_everything_give_no_pair() -> None:
    sequences = [[step % NUM_ITEMS for step in range(NUM_ITEMS + 2)], [0, 1, 2, 3]]
    prepared = build(sequences, NUM_ITEMS, {"train": [(0, NUM_ITEMS, NUM_ITEMS + 2), (26, 28, 30)]})
    prepared.meta["repeat_policy"] = "exclude"
    trained, config = start(prepared), config_of(preference_share=1.0)
    objective = AlignObjective(config, trained, prepared, DpoLoss(0.1))
    search, train = CandidateSearch(trained, prepared, kind="sampled"), prepared.examples("train")
    pairs = roll_out(config, search, Taste(large_items), objective.logprobs, train, 0, Progress())
    assert pairs.example_P.tolist() == [1]
    assert pairs.figures["rollout_pair_share"] == 0.5


def test_equal_rewards_are_refused_with_a_way_out() -> None:
    prepared = world()
    trained = start(prepared)
    config = config_of()
    objective = AlignObjective(config, trained, prepared, DpoLoss(0.1))
    search = CandidateSearch(trained, prepared)
    train = prepared.examples("train")
    indifferent = Taste(lambda item_BWK: np.ones(item_BWK.shape[:2]))
    broken = Taste(lambda item_BWK: np.full(item_BWK.shape[:2], np.nan))
    with pytest.raises(ValueError, match=r"align\.min_reward_margin = 0\.0: lower it"):
        roll_out(config, search, indifferent, objective.logprobs, train, 0, Progress())
    with pytest.raises(ValueError, match="not finite"):
        roll_out(config, search, broken, objective.logprobs, train, 0, Progress())


def test_dropout_does_not_touch_the_logprobs_of_pairs() -> None:
    prepared = world()
    trained = start(prepared)
    objective = AlignObjective(config_of(), trained, prepared, DpoLoss(0.1))
    example_P, row_PSK = np.arange(4), np.arange(24, dtype=np.int32).reshape(4, 3, 2)
    trained.generator.train()
    torch.manual_seed(0)
    first = objective.logprobs(example_P, row_PSK)
    np.testing.assert_array_equal(first, objective.logprobs(example_P, row_PSK))
