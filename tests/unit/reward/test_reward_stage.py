"""Training: it resumes to the same loss, stops early, and says what it cannot do; the scorer; the exported graph."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feedback_data import config_of, items_of, quiet, visits_that_betray_a_mood, visits_with_boredom
from rich.console import Console

from loadtests.bench.evaluation import reward_result
from loadtests.bench.results_page import render
from model_export.data.prepared import PreparedData
from model_export.progress import Progress
from model_export.reward.company import CompanyTerm
from model_export.reward.graph import RewardGraph
from model_export.reward.report import RewardReport
from model_export.reward.reward_scorer import RewardScorer
from model_export.reward.rivals import reward_with_rivals
from model_export.reward.stage import TrainedReward, train_reward
from model_export.train.batches import Collator
from model_export.train.catalog import TrainingCatalog

FEW = visits_with_boredom(num_users=60, visits_each=5)
STOPS = {"max_epochs": 3, "patience": 0, "checkpoint_every": 2, "dropout": 0.2, "history_dropout": 0.2}


class Killed(BaseException):
    """Not an Exception, as a signal is not."""


class Bar(Progress):
    """Dies when the step of a number has been done."""

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.dies_at = dies_at
        self.started_at = 0

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Any]:
        bar, step = self, done
        self.started_at = done

        class Task:
            def advance(self, steps: int = 1, note: str = "") -> None:
                nonlocal step
                step += steps
                if step == bar.dies_at:
                    raise Killed

        yield Task()


def run(out: Path, bar: Progress, data: PreparedData = FEW, **config: Any) -> tuple[TrainedReward, list[Any]]:
    trained = train_reward(config_of(**{**STOPS, **config}), data, items_of(data.num_items), out, bar)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["train_s"]
    return trained, rows


def assert_same_weights(left: TrainedReward, right: TrainedReward) -> None:
    mine, other = left.model.state_dict(), right.model.state_dict()
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name


def test_a_run_that_died_goes_on_to_bitwise_the_same(tmp_path: Path) -> None:
    whole, rows = run(tmp_path / "whole", quiet())
    assert len(rows) == 3
    starts = []
    for death in (1, 3, 4, 8):
        bar = Bar(death)
        with pytest.raises(Killed):
            run(tmp_path / "broken", bar)
        starts.append(bar.started_at)
        torch.manual_seed(death)  # another process has another random state
    bar = Bar()
    resumed, resumed_rows = run(tmp_path / "broken", bar)
    assert [*starts, bar.started_at] == [0, 0, 2, 3, 6]
    assert resumed_rows == rows
    assert_same_weights(resumed, whole)
    assert_same_weights(TrainedReward.load(tmp_path / "broken", items_of(FEW.num_items)), whole)
    other, _ = run(tmp_path / "other", quiet(), seed=1)
    assert not torch.equal(other.model.norm.weight, whole.model.norm.weight)


def test_a_residual_run_that_died_goes_on_to_bitwise_the_same(tmp_path: Path) -> None:
    """In the model of single items (9 steps), and in the term for company (18)."""
    whole, rows = run(tmp_path / "whole", quiet(), residual=True)
    assert len(rows) == 6
    for death in (5, 11, 14):
        with pytest.raises(Killed):
            run(tmp_path / "broken", Bar(death), residual=True)
        torch.manual_seed(death)
    resumed, resumed_rows = run(tmp_path / "broken", quiet(), residual=True)
    assert resumed_rows == rows
    assert_same_weights(resumed, whole)


def test_a_residual_model_is_its_model_of_single_items_and_company(
    bored: PreparedData, trained: dict[str, TrainedReward], folder: Path
) -> None:
    """Same weights; the same logits, bit for bit, where an item has no company, and others where it has."""
    residual, single = trained["residual"].model, trained["item"].model
    of_items = single.state_dict()
    kept = {name: value for name, value in residual.state_dict().items() if not name.startswith("company.")}
    assert kept.keys() == of_items.keys()
    own = {"weight_S", "scale_S", "shift_S"}
    assert all(torch.equal(value, of_items[name]) for name, value in kept.items() if name not in own)
    assert (folder / "residual" / "item" / "calibrated.pt").exists()
    collator, examples = trained["residual"].collator(bored), bored.examples("test")[slice(0, 30)]
    item_BWK = np.random.default_rng(0).integers(bored.num_items, size=(len(examples), 3, 4)).astype(np.int32)
    item_BWK[:, 1:, 1:] = -1
    batch = collator.batch(examples, item_BWK)
    with torch.no_grad():
        logits_BWKS, single_BWKS = residual(batch), single(batch)
    assert torch.equal(logits_BWKS[:, 1:, 0], single_BWKS[:, 1:, 0])
    assert (logits_BWKS[:, 0] - single_BWKS[:, 0]).abs().mean() > 0.1


def test_a_residual_model_needs_company_and_keeps_its_weights_of_signals(tmp_path: Path) -> None:
    trained, _ = run(
        tmp_path / "a", quiet(), residual=True, residual_epochs=1, max_epochs=1, signal_weights=(2.5,)
    )  # fmt: skip
    assert trained.model.weight_S.tolist() == [2.5]
    lonely = visits_with_boredom(num_users=60, visits_each=5, slate_size=1)
    with pytest.raises(ValueError, match=r"no training visit has two items: leave reward\.residual off"):
        run(tmp_path / "b", quiet(), lonely, residual=True, max_epochs=1)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    """With a rate that ruins the weights after some epochs."""
    trained, rows = run(tmp_path, quiet(), max_epochs=30, patience=2, learning_rate=0.1)
    losses = [row["valid_loss"] for row in rows]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3
    best_weights = torch.load(tmp_path / "reward.pt", weights_only=True)
    assert torch.equal(best_weights["norm.weight"], trained.model.norm.weight)


def test_signals_are_chosen_by_how_often_they_occur(tmp_path: Path) -> None:
    feedback = FEW.feedback
    assert feedback is not None
    trained, _ = run(tmp_path / "a", quiet(), signals=(), min_positives=30, max_epochs=1)
    assert trained.signals == ("click",)
    trained, _ = run(tmp_path / "b", quiet(), signals=("follow", "click"), signal_weights=(2.0, 0.5), max_epochs=1)
    assert trained.signals == ("follow", "click")
    assert trained.model.weight_S.tolist() == [2.0, 0.5]
    with pytest.raises(ValueError, match="no signal 'like'; there are click, follow"):
        run(tmp_path / "c", quiet(), signals=("like",))
    with pytest.raises(ValueError, match="no signal occurs 100000 times"):
        run(tmp_path / "d", quiet(), signals=(), min_positives=100_000)
    with pytest.raises(ValueError, match="do not tell what was shown"):
        run(tmp_path / "e", quiet(), replace(FEW, feedback=None))
    late = replace(feedback, part_M=np.ones_like(feedback.part_M))
    with pytest.raises(ValueError, match="no training visits"):
        run(tmp_path / "f", quiet(), replace(FEW, feedback=late))


def test_a_loss_that_is_no_number_ends_training_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the loss of step \d+ is nan: lower reward\.learning_rate"):
        run(tmp_path, quiet(), learning_rate=1e30, max_gradient_norm=1e30, max_epochs=50)


def test_the_scorer_prefers_slates_without_repeated_groups(
    bored: PreparedData, trained: dict[str, TrainedReward]
) -> None:
    scorer = RewardScorer(trained["session"], bored)
    examples = bored.examples("test")
    varied, same = np.array([0, 1, 2, -1]), np.array([0, 3, 6, -1])
    item_BWK = np.broadcast_to(np.stack([varied, same]), (len(examples), 2, 4)).astype(np.int32)
    reward_BW = scorer.score(examples, item_BWK)
    assert reward_BW.dtype == np.float32
    assert reward_BW.shape == (len(examples), 2)
    assert (reward_BW[:, 0] > reward_BW[:, 1]).mean() > 0.9
    alone = scorer.score(examples[7:8], item_BWK[7:8])
    np.testing.assert_allclose(alone, reward_BW[7:8], rtol=1e-5)
    with pytest.raises(ValueError, match="300 examples need slates"):
        scorer.score(examples, item_BWK[:2])
    with pytest.raises(ValueError, match="at most 4"):
        scorer.score(examples, np.zeros((len(examples), 1, 5), np.int32))


@pytest.mark.parametrize("name", ["session", "residual", "item"])
def test_items_by_row_get_the_rewards_that_the_scorer_gives(
    name: str, bored: PreparedData, trained: dict[str, TrainedReward]
) -> None:
    """The graph's piece takes the generator's histories, which may be longer, and looks everything up by row."""
    reward = trained[name]
    catalog = TrainingCatalog.build(bored, reward.items.sids_NL)
    longer = replace(reward.model.spec, history_length=reward.model.spec.history_length + 5)
    examples = bored.examples("test")[slice(0, 40)]
    history = Collator(bored, catalog, longer, torch.device("cpu")).history(examples)
    assert history.rows_BT is not None
    assert (history.lengths_B > reward.model.spec.history_length).any()
    rng = np.random.default_rng(0)
    item_BWK = rng.integers(bored.num_items, size=(len(examples), 6, 4)).astype(np.int32)
    item_BWK[::3, 1, 2:] = -1
    item_BWK[5, 0] = -1
    rows_BWK = np.where(item_BWK >= 0, catalog.row_of_item_N[item_BWK], -1).astype(np.int32)
    with torch.no_grad():
        item_rewards_BWK = RewardGraph(reward.model)(
            *history.as_args(),
            history.rows_BT,
            torch.from_numpy(reward.items.embedding_NE[catalog.item_of_row_N]),
            torch.from_numpy(catalog.snapshot.sids_NL),
            torch.from_numpy(rows_BWK),
        ).numpy()
    np.testing.assert_allclose(
        item_rewards_BWK.sum(2), RewardScorer(reward, bored).score(examples, item_BWK), atol=1e-5
    )
    assert (item_rewards_BWK[item_BWK < 0] == 0).all()


def test_the_rewards_of_a_causal_models_first_items_are_those_of_the_slate_that_ends_there(
    bored: PreparedData, trained: dict[str, TrainedReward]
) -> None:
    model, collator = trained["causal"].model, trained["causal"].collator(bored)
    examples = bored.examples("test")[slice(0, 30)]
    item_BWK = np.random.default_rng(1).integers(bored.num_items, size=(len(examples), 5, 4)).astype(np.int32)
    with torch.no_grad():
        whole_BWK = model.item_rewards(collator.batch(examples, item_BWK))
        for length in (1, 2, 3):
            cut_BWK = np.where(np.arange(4) < length, item_BWK, -1).astype(np.int32)
            reward_BW, _ = model.expectations(collator.batch(examples, cut_BWK))
            torch.testing.assert_close(whole_BWK[:, :, :length].sum(2), reward_BW)


def test_the_model_comes_with_its_rivals_and_their_curves(tmp_path: Path) -> None:
    config = config_of(max_epochs=1, signals=(), min_positives=30, num_bootstrap_samples=20, num_seeds=2)
    trained, report = reward_with_rivals(config, FEW, items_of(FEW.num_items), tmp_path, quiet())
    assert report.runs == {"session": 2, "item": 2, "position": 2}
    assert report.subject == "session"
    assert {row["other"] for row in report.differences} == {"item", "position", "session on shuffled sessions"}
    assert_same_weights(TrainedReward.load(tmp_path, items_of(FEW.num_items)), trained)
    for name in ("report.json", "report.md", "curves.png", "item/calibrated.pt", "seed-1/position/calibrated.pt"):
        assert (tmp_path / name).stat().st_size > 0
    other = TrainedReward.load(tmp_path / "seed-1", items_of(FEW.num_items))
    assert not torch.equal(other.model.norm.weight, trained.model.norm.weight)
    assert RewardReport.load(tmp_path) == report
    reward_result("tiny", report).append_to(tmp_path / "results")
    page = render(tmp_path / "results")
    auc = next(row["auc"]["mean"] for row in report.figures if row["model"] == "item")
    assert f"{auc:.4g}" in page
    assert "AUC of session minus" in page
    assert "seeds: session 2, item 2, position 2" in page


def test_the_rival_of_a_residual_model_is_what_it_starts_from(tmp_path: Path) -> None:
    """It is trained once for every seed: two terms, two models of items, two of positions."""
    begun: list[int] = []

    class Counting(Bar):
        @contextmanager
        def task(self, name: str, total: int, done: int = 0) -> Iterator[Any]:
            begun.extend([total] if done < total else [])
            with super().task(name, total, done) as task:
                yield task

    config = config_of(
        residual=True, max_epochs=1, residual_epochs=2, signals=(), min_positives=30, num_bootstrap_samples=20,
        num_seeds=2,
    )  # fmt: skip
    _, report = reward_with_rivals(config, FEW, items_of(FEW.num_items), tmp_path, Counting())
    assert sorted(begun) == [3, 3, 3, 3, 6, 6]
    assert report.runs == {"session": 2, "item": 2, "position": 2}
    items = items_of(FEW.num_items)
    for seed in (tmp_path, tmp_path / "seed-1"):
        whole, single = TrainedReward.load(seed, items), TrainedReward.load(seed / "item", items)
        assert torch.equal(whole.model.norm.weight, single.model.norm.weight)


def test_a_term_that_helps_nobody_is_left_out(tmp_path: Path) -> None:
    """With a rate that ruins whatever learns at it."""
    ruined, rows = run(tmp_path, quiet(), residual=True, max_epochs=2, residual_epochs=1, learning_rate=3.0)
    assert isinstance(ruined.model.company, CompanyTerm)
    assert (ruined.model.company.out.weight == 0).all()
    learned = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert (learned["company.out.weight"] != 0).any()
    assert len(rows) == 1


def test_what_company_tells_of_the_user_is_not_taken_for_what_it_does(tmp_path: Path) -> None:
    """In truth the second item of a group is worth less than one of another; the log makes it look worth more."""
    data = visits_that_betray_a_mood()
    examples = data.examples("test")
    pairs = np.array([[0, 3, -1, -1], [0, 1, -1, -1]], dtype=np.int32)  # one group, two groups
    gain = {}
    for absorbs in (False, True):
        config = config_of(causal=True, absorbs_context=absorbs, history_dropout=0.0)
        trained = train_reward(config, data, items_of(data.num_items), tmp_path / str(absorbs), quiet())
        reward_BW = RewardScorer(trained, data).score(examples, np.tile(pairs, (len(examples), 1, 1)))
        gain[absorbs] = float((reward_BW[:, 0] - reward_BW[:, 1]).mean())
    assert gain[False] > 0.1
    assert gain[True] < 0.03
