"""The training loop: the loss by hand, what padding and emptied histories may not change, learning, and patience."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from training_data import MODEL, build, catalog_of, config_of, generator_of, grid_sids, quiet, trainer_of, walks

from model_export.search.eager import BeamSearch
from model_export.train.batches import Collator
from model_export.train.config import TrainConfig
from model_export.train.loop import Trainer, _emptied
from model_export.train.stage import TrainedGenerator, plot_curves, train
from model_export.train.validation import Validation, Validator

SIZE, LEVELS = 4, 2


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.generator.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("score_mode", ["full_softmax", "legal_softmax"])
def test_the_loss_is_the_weighted_mean_over_items_of_the_mean_over_codes(tmp_path: Path, score_mode: Any) -> None:
    # Targets of one and of two items; the weight of the first is 3.
    prepared = build([[0, 1, 2, 3], [4, 5, 6, 0]], 7, {"train": [(0, 1, 3), (4, 7, 8), (4, 5, 7)]})
    model = dataclasses.replace(MODEL, dropout=0.0, score_mode=score_mode)
    trainer = trainer_of(prepared, tmp_path, model, history_dropout=0.0, first_item_weight=3.0, precision="float32")
    examples = prepared.examples("train")
    history, (rows_BK, codes_BKL) = trainer._collator.history(examples), trainer._collator.targets(examples)
    sids = [tuple(sid) for sid in trainer._validator._catalog.snapshot.sids_NL.tolist()]
    with torch.no_grad():
        logits = trainer.generator(history, codes_BKL)
    total = weights = 0.0
    for b in range(3):
        for k in range(2):
            if rows_BK[b, k] < 0:
                continue
            codes, losses = codes_BKL[b, k].tolist(), []
            for level in range(LEVELS):
                legal = {sid[level] for sid in sids if sid[:level] == tuple(codes[:level])}
                row = logits[level][b, k].clone()
                if score_mode == "legal_softmax":
                    row[[code for code in range(SIZE) if code not in legal]] = -torch.inf
                losses.append(-float(F.log_softmax(row, 0)[codes[level]]))
            weight = 3.0 if k == 0 else 1.0
            total += weight * sum(losses) / LEVELS
            weights += weight
    assert trainer._step(examples) == pytest.approx(total / weights, rel=1e-5)


@pytest.mark.parametrize("num_experts", [1, 2])
@pytest.mark.parametrize("score_mode", ["full_softmax", "legal_softmax"])
def test_what_stands_after_the_end_of_a_target_changes_nothing(
    tmp_path: Path, score_mode: Any, num_experts: int
) -> None:
    prepared = build([[0, 1, 2, 3, 4, 5]], 7, {"train": [(0, 1, 2), (0, 2, 4), (0, 3, 4)]}, slate_size=3)
    model = dataclasses.replace(MODEL, score_mode=score_mode, num_experts=num_experts)

    def three_steps(padding: int, first: int | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
        trainer = trainer_of(prepared, tmp_path, model)
        rows_BK, codes_BKL = trainer._collator.targets(prepared.examples("train"))
        assert (rows_BK < 0).sum() == 5
        codes_BKL[rows_BK < 0] = padding
        if first is not None:
            codes_BKL[1, 0] = first
        trainer._collator.targets = lambda _: (rows_BK, codes_BKL)  # type: ignore[method-assign]
        return [trainer._step(prepared.examples("train")) for _ in range(3)], weights_of(trainer)

    losses, weights = three_steps(0)
    for padding in (1, 3):
        others, other_weights = three_steps(padding)
        if num_experts == 1:
            assert others == losses
            assert same(other_weights, weights)
        else:  # experts compute other groups of tokens then, and sums round otherwise
            assert others == pytest.approx(losses, rel=1e-6)
    # What the padding must not do, a code of the target does.
    assert three_steps(0, first=2)[0] != pytest.approx(three_steps(0, first=1)[0], rel=1e-3)


def test_emptied_histories_hide_everything_and_are_as_many_as_asked() -> None:
    prepared = walks(7, 60, 8)
    catalog = catalog_of(prepared, grid_sids(7, SIZE, LEVELS))
    collator = Collator(prepared, catalog, generator_of(prepared, SIZE, LEVELS).spec, torch.device("cpu"))
    history = collator.history(prepared.examples("train"))
    torch.manual_seed(0)
    emptied = _emptied(history, 0.3)
    hidden_B = emptied.lengths_B == 0
    assert 0.2 < float(hidden_B.float().mean()) < 0.4
    assert torch.equal(emptied.lengths_B[~hidden_B], history.lengths_B[~hidden_B])
    assert emptied.lengths_B.dtype == history.lengths_B.dtype
    assert _emptied(history, 0.0) is history


def test_with_every_history_emptied_training_does_not_depend_on_histories(tmp_path: Path) -> None:
    # The same targets after other histories; 0.999999 leaves one history in a million.
    left = build([[0, 1, 2, 3, 4, 5]] * 4, 7, {"train": [(6 * u, 6 * u + 4, 6 * u + 6) for u in range(4)]})
    right = build([[6, 6, 3, 1, 4, 5]] * 4, 7, {"train": [(6 * u, 6 * u + 4, 6 * u + 6) for u in range(4)]})
    found = {}
    for share in (0.999999, 0.0):
        losses = []
        for prepared in (left, right):
            trainer = trainer_of(prepared, tmp_path, history_dropout=share)
            losses.append([trainer._step(prepared.examples("train")) for _ in range(3)])
        found[share] = losses
    assert found[0.999999][0] == found[0.999999][1]
    assert found[0.0][0] != found[0.0][1]


@pytest.mark.parametrize("score_mode", ["full_softmax", "legal_softmax"])
def test_a_deterministic_next_item_is_learned(tmp_path: Path, score_mode: Any) -> None:
    prepared = walks(60, 80, 14)
    sids_NL = grid_sids(60, SIZE, 3)
    model = dataclasses.replace(MODEL, width=32, score_mode=score_mode, dropout=0.0)
    config = config_of(
        batch_size=64, learning_rate=1e-2, max_epochs=16, patience=0, history_dropout=0.02, num_valid_examples=60
    )
    trained = train(config, model, prepared, sids_NL, (SIZE,) * 3, tmp_path, quiet())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(16))
    assert rows[-1]["loss"] < 0.25 * rows[0]["loss"]
    assert rows[-1]["valid_loss"] < 0.2
    # By chance one in six.
    assert rows[-1]["valid_recall_10"] > 0.97
    assert rows[-1]["valid_ndcg_10"] > 0.9
    assert not trained.generator.training
    assert (tmp_path / "curves.png").stat().st_size > 1000
    loaded = TrainedGenerator.load(tmp_path, prepared, sids_NL)
    assert same(loaded.generator.state_dict(), trained.generator.state_dict())
    assert loaded.generator.spec == trained.generator.spec
    assert loaded.generator.config == trained.generator.config


def test_validation_figures_equal_those_counted_by_hand(tmp_path: Path) -> None:
    prepared = walks(12, 30, 8)
    trainer = trainer_of(prepared, tmp_path, num_valid_examples=17)
    assert len(trainer._validator) == 17
    targets = trainer._collator.targets(trainer._validator._examples)[0][:, 0]
    search = BeamSearch(trainer.generator.eval(), trainer._validator._catalog.snapshot)
    ranks = trainer._validator._ranks(search, trainer._validator._examples, targets)
    found = trainer._validator.measure(trainer.generator, trainer._objective)
    # What a user without events is shown is one list, whoever asks.
    nothing = prepared.examples("valid")[slice(0, 1)]
    nothing = dataclasses.replace(nothing, history_start=nothing.history_end)
    alone = search.decode(trainer._collator.history(nothing), beam_width=10, num_items=1)
    shown = alone.item_rows_BWK[0, :10, 0].tolist()
    assert found.new_user_recall_10 == pytest.approx(sum(target in shown for target in targets.tolist()) / 17)
    assert 0 < found.new_user_recall_10 < 1
    hits = [int(rank) for rank in ranks if rank < 10]
    assert 0 < len(hits) < 17
    assert found.recall_10 == pytest.approx(len(hits) / 17)
    assert found.ndcg_10 == pytest.approx(sum(1 / np.log2(rank + 2) for rank in hits) / 17)
    assert trainer.generator.training


def test_excluded_history_items_are_no_competition_in_validation(tmp_path: Path) -> None:
    prepared = walks(12, 30, 12)  # each saw every item but the two targets
    allowing = trainer_of(prepared, tmp_path)
    excluding_data = dataclasses.replace(prepared, meta={**prepared.meta, "repeat_policy": "exclude"})
    excluding = trainer_of(excluding_data, tmp_path)
    assert allowing._validator.measure(allowing.generator, allowing._objective).recall_10 < 1
    assert excluding._validator.measure(excluding.generator, excluding._objective).recall_10 == 1.0


def test_the_best_epoch_is_kept_and_patience_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter([0.1, 0.5, 0.2, 0.5, 0.4, 0.9])
    seen: list[dict[str, torch.Tensor]] = []

    def measure(self: Validator, generator: torch.nn.Module, objective: Any) -> Validation:
        seen.append({name: value.clone() for name, value in generator.state_dict().items()})
        return Validation(loss=1.0, recall_10=0.0, ndcg_10=next(script), new_user_recall_10=0.0)

    monkeypatch.setattr(Validator, "measure", measure)
    prepared = walks(7, 10, 6)
    trainer = trainer_of(prepared, tmp_path, max_epochs=20, patience=3)
    weights = trainer.run(quiet())
    assert len(seen) == 5  # 0.5 in epoch 1; then three without a better one
    assert (trainer.progress.best_epoch, trainer.progress.best_ndcg) == (1, 0.5)
    assert same(torch.load(weights, weights_only=True), seen[1])
    again = trainer_of(prepared, tmp_path, max_epochs=20, patience=3)
    again.run(quiet())
    assert len(seen) == 5  # nothing is run again


@pytest.mark.parametrize("targets", ["session", "item"])
def test_without_validation_examples_the_last_epoch_is_kept(tmp_path: Path, targets: Any) -> None:
    prepared = walks(7, 10, 6)
    prepared.splits["valid"] = prepared.examples("valid")[:0]
    trainer = trainer_of(prepared, tmp_path, max_epochs=3, patience=1, targets=targets)
    weights = trainer.run(quiet())
    assert (trainer.progress.epoch, trainer.progress.best_epoch) == (3, 2)
    assert same(torch.load(weights, weights_only=True), weights_of(trainer))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [
        {"epoch", "step", "loss", "learning_rate", "train_s", "expert_max_load_0", "expert_idle_share"}
    ] * 3
    plot_curves(tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_rate_rises_for_the_warmup_and_falls_to_a_hundredth(tmp_path: Path) -> None:
    trainer = trainer_of(walks(7, 40, 10), tmp_path, max_epochs=10, warmup_steps=20, learning_rate=0.5)
    steps = 10 * trainer._num_steps
    rates = [trainer._learning_rate(step) for step in range(steps)]
    assert rates[0] == pytest.approx(0.5 / 20, rel=0.01)
    assert rates.index(max(rates)) in range(18, 22)
    assert max(rates) <= 0.5
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[20:]))
    assert rates[-1] == pytest.approx(0.005, rel=0.05)


def test_matrices_decay_and_vectors_do_not(tmp_path: Path) -> None:
    trainer = trainer_of(walks(7, 10, 6), tmp_path, weight_decay=0.1)
    decay = {
        id(parameter): group["weight_decay"]
        for group in trainer._optimizer.param_groups
        for parameter in group["params"]
    }
    for parameter in trainer.generator.parameters():
        assert decay.pop(id(parameter)) == (0.1 if parameter.ndim >= 2 else 0.0)
    assert not decay


def test_a_loss_that_is_no_number_ends_training_at_once(tmp_path: Path) -> None:
    trainer = trainer_of(walks(7, 10, 6), tmp_path)
    with torch.no_grad():
        trainer.generator.start_D.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"the loss of step 0 is nan: lower train\.learning_rate"):
        trainer.run(quiet())


def test_no_training_example_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training examples"):
        trainer_of(build([[0, 1, 2]], 3, {"valid": [(0, 1, 3)]}), tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 0, "train.batch_size must be at least 1, not 0"),
        ("history_length", 0, "at least 1"),
        ("max_epochs", 0, "at least 1"),
        ("min_target_items", 0, "at least 1"),
        ("checkpoint_every", 0, "at least 1"),
        ("valid_beam_width", 9, "at least 10"),
        ("learning_rate", 0.0, "must be positive"),
        ("learning_rate", float("nan"), "must be positive"),
        ("first_item_weight", -1.0, "must be positive"),
        ("patience", -1, "must not be negative"),
        ("history_dropout", 1.0, r"must lie in \[0, 1\)"),
        ("history_dropout", -0.1, r"must lie in \[0, 1\)"),
        ("targets", "items", "one of session, item"),
        ("precision", "float16", "one of auto, float32, bfloat16"),
    ],
)
def test_settings_are_checked(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{name: value})


def test_bfloat16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    prepared = walks(7, 20, 8)
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = trainer_of(prepared, tmp_path, precision=precision)
        losses[precision] = trainer._step(prepared.examples("train"))
        assert {parameter.dtype for parameter in trainer.generator.parameters()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)


def test_a_training_that_stops_early_is_the_beginning_of_the_whole_one(tmp_path: Path) -> None:
    prepared, sids_NL = walks(20, 20, 10), grid_sids(20, 4, 3)
    config = config_of(max_epochs=3, patience=0)
    rows = {}
    for name, stop_epoch in (("whole", 0), ("stopped", 2)):
        train(dataclasses.replace(config, stop_epoch=stop_epoch), MODEL, prepared, sids_NL, (4, 4, 4), tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [{key: value for key, value in json.loads(line).items() if key != "train_s"} for line in lines]
    assert len(rows["stopped"]) == 2
    assert rows["stopped"] == rows["whole"][:2]
