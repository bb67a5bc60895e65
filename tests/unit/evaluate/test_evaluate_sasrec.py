"""SASRec learns what can be learnt, stops when it should, and repeats itself."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from model_export.evaluate.baselines.popularity import Popularity
from model_export.evaluate.baselines.sasrec import SasRec, _Trainer
from model_export.evaluate.baselines.sasrec_config import SasRecConfig
from model_export.evaluate.baselines.sasrec_model import SasRecModel, fitted
from model_export.evaluate.sequences import first_targets

SMALL = {"width": 32, "num_layers": 1, "feed_forward_width": 32, "dropout": 0.0, "learning_rate": 0.01, "max_length": 8,
         "warmup_steps": 1, "batch_targets": 100, "max_epochs": 40, "patience": 10}  # fmt: skip


def hits(recommender, prepared) -> float:
    examples = prepared.examples("test")
    return float((recommender.rank(examples, 1)[:, 0] == first_targets(prepared, examples)).mean())


@pytest.mark.parametrize("options", [{}, {"temperature": 0.1, "embedding_std": 0.1}])
def test_learns_a_cycle_and_beats_popularity(cycle, options):
    model = SasRec(cycle, SasRecConfig(**{**SMALL, **options})).fit(Console(file=io.StringIO()))
    assert hits(model, cycle) == 1.0
    assert hits(Popularity(cycle), cycle) < 0.2
    assert model.epochs[-1]["loss"] < 0.5 * model.epochs[0]["loss"]
    assert len(model.epochs) < 40, "early stopping ends the run once validation stands still"


def test_projected_features_are_part_of_the_item_vectors_and_their_projection_is_trained(cycle):
    feature_ND = np.random.default_rng(0).normal(size=(13, 5)).astype(np.float32)
    config = SasRecConfig(**{**SMALL, "text": "project", "max_epochs": 3})
    model = SasRec(cycle, config, feature_ND=feature_ND)
    at_start = model.model.text_projection.weight.detach().clone()
    model.fit(Console(file=io.StringIO()))
    projection = model.model.text_projection.weight.detach()
    assert not torch.allclose(projection, at_start)
    from_text = (model.model.item_vectors() - model.model.item_embedding.weight).detach()
    assert torch.allclose(from_text[:13], torch.from_numpy(feature_ND) @ projection.T, atol=1e-5)
    assert (from_text[13] == 0).all(), "padding has no text"


def test_initialise_starts_from_the_features():
    feature_ND = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1.0], [0, 1.0, 0]])
    config = SasRecConfig(width=4, num_heads=1, text="initialise", embedding_std=0.5)
    weight = SasRecModel(config, 4, feature_ND).item_embedding.weight.detach()
    centred = torch.nn.functional.normalize(feature_ND - feature_ND.mean(dim=0), dim=1)
    assert torch.allclose(
        torch.nn.functional.normalize(weight[:4], dim=1) @ weight[:4].T, centred @ centred.T, atol=1e-5
    )
    assert torch.allclose(weight[:4].norm(dim=1), torch.ones(4), atol=1e-5)
    assert fitted(torch.zeros(3, 2), 4).tolist() == [[0.0] * 4] * 3


def test_two_runs_with_one_seed_are_equal_and_leave_the_global_generator_alone(cycle):
    config = SasRecConfig(**{**SMALL, "dropout": 0.2, "max_epochs": 3})
    before = torch.random.get_rng_state()
    runs = [SasRec(cycle, config).fit(Console(file=io.StringIO())) for _ in range(2)]
    other = SasRec(cycle, SasRecConfig(**{**SMALL, "dropout": 0.2, "max_epochs": 3, "seed": 1}))
    assert torch.equal(torch.random.get_rng_state(), before)
    examples = cycle.examples("test")
    first, second = (run.scores(examples) for run in runs)
    assert (first == second).all()
    assert runs[0].epochs == runs[1].epochs
    assert not (other.fit(Console(file=io.StringIO())).scores(examples) == first).all()


def test_keeps_the_best_epoch_and_reports_lines_without_a_terminal(cycle):
    out = io.StringIO()
    model = SasRec(cycle, SasRecConfig(**SMALL)).fit(Console(file=out))
    assert "sasrec: epoch 1, loss" in out.getvalue()
    best = max(row["valid_ndcg@10"] for row in model.epochs)
    assert model._valid_ndcg(cycle.examples("valid")) == pytest.approx(best)


def test_scores_do_not_depend_on_the_batch(cycle):
    model = SasRec(cycle, SasRecConfig(**SMALL))
    examples = cycle.examples("test")
    alone = np.concatenate([model.scores(examples[row : row + 1]) for row in range(5)])
    assert model.scores(examples)[:5] == pytest.approx(alone, abs=1e-5)


def test_a_position_sees_only_what_is_before_it():
    config = SasRecConfig(width=8, num_heads=2, num_layers=2, max_length=6, embedding_std=1.0)
    model = SasRecModel(config, 5).eval()
    a = torch.tensor([[0, 1, 2, 3]])
    b = torch.tensor([[0, 1, 4, 4]])
    hidden_a, hidden_b = (model(items, model.item_vectors()) for items in (a, b))
    assert torch.allclose(hidden_a[:, :2], hidden_b[:, :2], atol=1e-6)
    assert not torch.allclose(hidden_a[:, 2], hidden_b[:, 2])


def test_every_training_position_is_a_target_exactly_once_an_epoch(make_prepared):
    lengths = [3, 4, 9, 17, 30]
    prepared = make_prepared([list(range(length)) for length in lengths], 30)
    config = SasRecConfig(width=8, max_length=5, batch_targets=12)
    trainer = _Trainer(SasRecModel(config, 30), config, prepared)
    expected = sorted((row, place) for row, length in enumerate(lengths) for place in range(1, length - 2))
    for _ in range(3):
        found = []
        batches = trainer._batches()
        assert len(batches) >= 3, "batches are cut by their number of targets"
        for start, end in np.concatenate(batches).tolist():
            row = int(np.searchsorted(trainer.start_S, start, side="right")) - 1
            found += [(row, place + 1 - int(trainer.start_S[row])) for place in range(start, end)]
            assert 1 <= end - start <= 5
        assert sorted(found) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width"),
        ({"num_heads": 3}, "divide"),
        ({"dropout": 1.0}, "dropout"),
        ({"temperature": 0.0}, "temperature"),
        ({"text": "maybe"}, "text"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SasRecConfig(**options)


def test_text_needs_a_feature_row_per_item(cycle):
    for features in (None, np.zeros((3, 2))):
        with pytest.raises(ValueError, match="feature row for each of 13"):
            SasRec(cycle, SasRecConfig(text="project"), feature_ND=features)


def test_without_validation_examples_the_loss_decides(make_prepared):
    prepared = make_prepared([[(start + step) % 6 for step in range(8)] for start in range(6)], 6)
    prepared.splits["valid"] = prepared.splits["valid"][:0]
    out = io.StringIO()
    model = SasRec(prepared, SasRecConfig(**{**SMALL, "max_epochs": 4})).fit(Console(file=out))
    assert [set(row) for row in model.epochs] == [{"epoch", "loss"}] * 4
    best = min(model.epochs, key=lambda row: row["loss"])["epoch"]
    assert f"kept epoch {best} of 4" in out.getvalue()


def test_early_stopping_looks_at_a_seeded_sample_of_a_large_validation_part(cycle):
    model = SasRec(cycle, SasRecConfig(width=8, max_valid_examples=7))
    sample = model._valid_examples()
    assert len(sample) == 7
    assert set(sample.target_start) < set(cycle.examples("valid").target_start)
    assert (model._valid_examples().target_start == sample.target_start).all()


def test_a_number_of_epochs_is_kept_to_and_the_last_weights_stay(cycle):
    config = SasRecConfig(**{**SMALL, "patience": 1})
    free = SasRec(cycle, config).fit(Console(file=io.StringIO()))
    assert free.best_epoch == 1 + int(np.argmax([row["valid_ndcg@10"] for row in free.epochs]))
    bound = SasRec(cycle, config).fit(Console(file=io.StringIO()), num_epochs=len(free.epochs) + 3)
    assert bound.best_epoch == len(bound.epochs) == len(free.epochs) + 3
    assert bound.epochs[: len(free.epochs)] == free.epochs
