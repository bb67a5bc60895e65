"""What each scope may see, and what a slate's end hides."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from feedback_data import CODEBOOK_SIZES, NUM_GROUPS, config_of, items_of

from model_export.model.config import GeneratorSpec
from model_export.model.generator import HistoryBatch
from model_export.reward.config import RewardConfig
from model_export.reward.model import RewardBatch, RewardModel, shared_codes

ITEMS = items_of(NUM_GROUPS * 8)
SPEC = GeneratorSpec(
    codebook_sizes=CODEBOOK_SIZES, slate_size=4, history_length=24, value_edges=((), (1.0,)), has_times=True,
    embedding_width=ITEMS.embedding_NE.shape[1],
)  # fmt: skip


def model_of(**config: Any) -> RewardModel:
    torch.manual_seed(0)
    model = RewardModel(config_of(history_layers=1, slate_layers=2, history_length=24, **config), SPEC, (1.0, -2.0))
    for parameter in model.parameters():  # what starts at zero would hide what it is for
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def history_of(num: int = 3, length: int = 6) -> HistoryBatch:
    generator = torch.Generator().manual_seed(1)
    codes = torch.stack([torch.randint(2, size + 2, (num, length), generator=generator) for size in CODEBOOK_SIZES], 2)
    return HistoryBatch(
        codes_BTL=codes.int(),
        actions_BT=torch.randint(1, 3, (num, length), generator=generator).int(),
        ages_BT=10_000 - torch.arange(length).expand(num, -1).int() * 60,
        values_BT=torch.rand((num, length), generator=generator) * 2,
        lengths_B=torch.tensor([length, length // 2, 0][:num]).int(),
    )


def slates(num: int = 3, num_slates: int = 2, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(2, size + 2, (num, num_slates, 4), generator=generator) for size in CODEBOOK_SIZES]
    return torch.stack(columns, 3).int()


def embeddings_of(codes: torch.Tensor) -> torch.Tensor:
    """Of the items with these codes; zeros after the end of a slate."""
    group, place = (codes.long() - 2).clamp(min=0).unbind(-1)
    found = torch.from_numpy(ITEMS.embedding_NE)[place * NUM_GROUPS + group]
    return found * (codes[..., :1] > 0)


def batch_of(history: HistoryBatch, codes: torch.Tensor) -> RewardBatch:
    return RewardBatch(
        history=history,
        history_embeddings_BTE=embeddings_of(history.codes_BTL),
        codes_BWKL=codes,
        embeddings_BWKE=embeddings_of(codes),
    )


def affected(model: RewardModel, place: int) -> list[int]:
    """Places whose logits change when the item at a place does."""
    codes = slates()
    changed = codes.clone()
    changed[:, :, place] = (changed[:, :, place] - 2 + 1) % torch.tensor(CODEBOOK_SIZES).int() + 2
    with torch.no_grad():
        before, after = model(batch_of(history_of(), codes)), model(batch_of(history_of(), changed))
    return [k for k in range(4) if not torch.allclose(before[:, :, k], after[:, :, k], atol=1e-6)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"scope": "session"}, [[0, 1, 2, 3]] * 4),
        ({"scope": "session", "causal": True}, [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3]]),
        ({"residual": True}, [[0, 1, 2, 3]] * 4),
        ({"residual": True, "causal": True}, [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3]]),
        ({"scope": "item"}, [[0], [1], [2], [3]]),
        ({"scope": "position"}, [[], [], [], []]),
    ],
)
def test_each_scope_sees_what_it_may(config: dict[str, Any], expected: list[list[int]]) -> None:
    model = model_of(**config)
    assert [affected(model, place) for place in range(4)] == expected


def test_slate_dropout_reads_some_training_slates_item_by_item() -> None:
    """A slate in two is read alone: its logits are those of company or those of none, never between."""
    model, history = model_of(scope="session", slate_dropout=0.5), history_of(num=1)
    codes = slates(num=1, num_slates=1).expand(1, 40, 4, 2)
    alone = slates(num=1, num_slates=1).reshape(1, 4, 1, 2)  # each item a slate, at the first place
    with torch.no_grad():
        together = model(batch_of(history, codes))[0, 0]
        first_alone = model(batch_of(history, alone))[0, 0, 0]
        logits = model.train()(batch_of(history, codes))[0]
        model.eval()
    is_together = torch.isclose(logits, together, atol=1e-5).flatten(1).all(1)
    is_alone = torch.isclose(logits[:, 0], first_alone, atol=1e-5).all(1)
    assert (is_together ^ is_alone).all()
    assert 5 < int(is_alone.sum()) < 35


@pytest.mark.parametrize("scope", ["session", "item"])
def test_the_history_matters_and_its_padding_does_not(scope: str) -> None:
    model, history, codes = model_of(scope=scope), history_of(), slates()
    hidden = torch.arange(6) >= history.lengths_B.unsqueeze(1)
    scrambled = replace(
        history,
        codes_BTL=torch.where(hidden.unsqueeze(2), 2, history.codes_BTL),
        ages_BT=torch.where(hidden, 5, history.ages_BT),
    )
    other = replace(history, actions_BT=3 - history.actions_BT)
    with torch.no_grad():
        logits = model(batch_of(history, codes))
        torch.testing.assert_close(model(batch_of(scrambled, codes)), logits)
        moved = (model(batch_of(other, codes)) - logits).abs().amax((1, 2, 3))
    assert (moved[:2] > 1e-3).all()
    assert moved[2] == 0  # an empty history


@pytest.mark.parametrize("config", [{}, {"causal": True}, {"residual": True}, {"scope": "item"}])
def test_a_short_slate_is_worth_the_same_however_it_is_padded(config: dict[str, Any]) -> None:
    model, history, codes = model_of(**config), history_of(), slates()
    padded = codes.clone()
    padded[:, :, 2:] = 0
    with torch.no_grad():
        reward, expected = model.expectations(batch_of(history, padded))
        short_reward, short_expected = model.expectations(batch_of(history, codes[:, :, :2]))
    torch.testing.assert_close(reward, short_reward)
    torch.testing.assert_close(expected, short_expected)
    torch.testing.assert_close(reward, expected @ torch.tensor([1.0, -2.0]))
    empty, _ = model.expectations(batch_of(history, torch.zeros_like(codes)))
    assert (empty == 0).all()


def test_embeddings_of_padding_do_not_matter() -> None:
    model, history, codes = model_of(scope="session"), history_of(), slates()
    codes = torch.cat([codes[:, :, :3], torch.zeros_like(codes[:, :, 3:])], 2)
    batch = batch_of(history, codes)
    hidden_BT = torch.arange(6) >= history.lengths_B.unsqueeze(1)
    other = replace(
        batch,
        history_embeddings_BTE=batch.history_embeddings_BTE + hidden_BT.unsqueeze(2),
        embeddings_BWKE=batch.embeddings_BWKE + (codes[..., :1] == 0),
    )
    moved = replace(batch, embeddings_BWKE=batch.embeddings_BWKE.roll(1, -1))
    with torch.no_grad():
        reward = model.expectations(batch)[0]
        torch.testing.assert_close(model.expectations(other)[0], reward)
        assert not torch.allclose(model.expectations(moved)[0], reward, atol=1e-3)


def test_slates_of_an_example_do_not_see_each_other() -> None:
    model, history, codes = model_of(scope="session"), history_of(), slates(num_slates=5)
    with torch.no_grad():
        together, _ = model.expectations(batch_of(history, codes))
        alone = torch.stack([model.expectations(batch_of(history, codes[:, [w]]))[0][:, 0] for w in range(5)], 1)
    torch.testing.assert_close(together, alone)


def test_calibration_moves_chances_and_keeps_their_order() -> None:
    model, history, codes = model_of(scope="session"), history_of(), slates()
    with torch.no_grad():
        logits = model(batch_of(history, codes))
        before = model.calibrated(logits)
        model.scale_S.copy_(torch.tensor([0.5, 2.0]))
        model.shift_S.copy_(torch.tensor([-1.0, 1.0]))
        after = model.calibrated(logits)
    torch.testing.assert_close(after, torch.sigmoid(logits * model.scale_S + model.shift_S))
    for signal in range(2):
        assert (before[..., signal].flatten().argsort() == after[..., signal].flatten().argsort()).all()


def test_shared_codes_counts_the_common_first_codes() -> None:
    rng = np.random.default_rng(0)
    mine, others = rng.integers(2, 4, (2, 5, 3)), rng.integers(2, 4, (2, 7, 3))
    found = shared_codes(torch.from_numpy(mine), torch.from_numpy(others))
    for b in range(2):
        for q in range(5):
            for t in range(7):
                same = (mine[b, q] == others[b, t]).tolist()
                assert found[b, q, t] == (same.index(False) if False in same else 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scope": "user"}, "scope must be one of session, item, position, not 'user'"),
        ({"scope": "item", "causal": True}, "causal needs reward.scope session"),
        ({"absorbs_context": True}, "absorbs_context needs reward.causal"),
        ({"residual": True, "scope": "item"}, "residual needs reward.scope session"),
        ({"residual": True, "causal": True, "absorbs_context": True}, "has no context to absorb"),
        ({"residual_epochs": 0}, "residual_epochs must be at least 1"),
        ({"signals": ("a", "a")}, "names one twice"),
        ({"signals": ("a", "b"), "signal_weights": (1.0,)}, r"as many as reward\.signals \(2\), not 1"),
        ({"signals": ("a",), "signal_weights": (float("nan"),)}, "finite"),
        ({"signals": ("a",), "signal_weights": (0.0,)}, "nothing would be rewarded"),
        ({"width": 0}, "width must be at least 1"),
        ({"learning_rate": float("nan")}, "must be positive"),
        ({"patience": -1}, "must not be negative"),
        ({"dropout": 1.0}, r"must lie in \[0, 1\)"),
        ({"slate_dropout": -0.1}, r"slate_dropout must lie in \[0, 1\)"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(**values)
