"""The loop: alignment raises the reward, keeps the better model, and survives death to the same bits."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignment_world import SIDS, Taste, config_of, distinct_codes, large_items, start, world
from rich.console import Console
from training_data import MODEL as EXPERTS
from training_data import generator_of

from model_export.align.config import AlignConfig
from model_export.align.measurement import Measurement, is_kept
from model_export.align.stage import align
from model_export.progress import Progress
from model_export.train.catalog import TrainingCatalog
from model_export.train.stage import TrainedGenerator


class Killed(BaseException):
    """Not an Exception, as a signal is not."""


class Bar(Progress):
    """Dies when that many steps and rollout batches have been done."""

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.left = dies_at
        self.starts: list[tuple[str, int]] = []

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Any]:
        self.starts.append((name, done))
        bar = self

        class Task:
            def advance(self, steps: int = 1, note: str = "") -> None:
                bar.left -= 1
                if bar.left == 0:
                    raise Killed

        yield Task()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def metrics(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        for name in ("rollout_s", "iteration_s"):
            row.pop(name, None)
    return rows


@pytest.mark.parametrize(
    "how",
    [
        {"candidates": "sampled", "rejected": "worst"},
        {"candidates": "beam", "rejected": "likeliest"},
        {"objective": "grpo", "temperature": 1.0},
        {"objective": "ecpo", "temperature": 1.0},
    ],
)
def test_alignment_raises_the_reward_over_its_start_and_over_supervised_steps(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    prepared, taste = world(), Taste(large_items)
    trained = start(prepared)
    before = {name: tensor.clone() for name, tensor in trained.generator.state_dict().items()}
    config = config_of(**how, num_steps=30)
    aligned = align(config, trained, taste, prepared, tmp_path / "ipa", Bar())
    control = config_of(**how, num_steps=30, control="supervised")
    align(control, trained, taste, prepared, tmp_path / "supervised", Bar())
    rows, control_rows = metrics(tmp_path / "ipa"), metrics(tmp_path / "supervised")
    first, last = rows[0]["valid_reward"], max(row["valid_reward"] for row in rows if row["kept"])
    assert last > first + 0.2
    assert last > max(row["valid_reward"] for row in control_rows) + 0.2
    assert all(row["valid_legality"] == 1 for row in rows)
    assert rows[-1]["accuracy"] > 0.6
    assert rows[-1]["drift"] > 0
    assert "accuracy" not in control_rows[-1]
    assert all(row["kept"] for row in control_rows)  # its last model comes out
    assert len(control_rows) == 4
    for name, tensor in trained.generator.state_dict().items():
        assert torch.equal(tensor, before[name])  # the start stays as it is
    loaded = TrainedGenerator.load(tmp_path / "ipa", prepared, SIDS)
    for name, tensor in aligned.generator.state_dict().items():
        assert torch.equal(tensor, loaded.generator.state_dict()[name])
    assert (tmp_path / "ipa" / "curves.png").stat().st_size > 0


def test_the_truth_is_measured_and_never_decides(tmp_path: Path) -> None:
    prepared = world()
    config = config_of(num_iterations=2)
    opposite = Taste(lambda item_BWK: 1 - large_items(item_BWK))
    without = align(config, start(prepared), Taste(large_items), prepared, tmp_path / "without", Bar())
    with_truth = align(config, start(prepared), Taste(large_items), prepared, tmp_path / "with", Bar(), opposite)
    for name, tensor in without.generator.state_dict().items():
        assert torch.equal(tensor, with_truth.generator.state_dict()[name])
    for row in metrics(tmp_path / "with"):
        assert row["valid_truth"] == pytest.approx(1 - row["valid_reward"], abs=1e-6)
    assert metrics(tmp_path / "without")[0]["valid_truth"] is None


def measured(**values: float) -> Measurement:
    figures = {"reward": 1.0, "ndcg_10": 0.2, "recall_10": 0.3, "diversity": 0.5, "coverage": 0.4, "legality": 1.0}
    return Measurement(**{**figures, **values}, truth=None)


@pytest.mark.parametrize(
    ("now", "kept"),
    [
        ({"reward": 1.2}, True),
        ({"reward": 1.1}, False),  # no better than the best
        ({"reward": 1.2, "ndcg_10": 0.181}, True),
        ({"reward": 1.2, "ndcg_10": 0.179}, False),
        ({"reward": 1.2, "diversity": 0.41}, True),
        ({"reward": 1.2, "diversity": 0.39}, False),
        ({"reward": 1.2, "legality": 0.99}, False),
    ],
)
def test_a_model_is_kept_if_the_reward_rises_and_nothing_falls_too_far(now: dict[str, float], kept: bool) -> None:
    config = AlignConfig(max_ndcg_drop=0.1, max_diversity_drop=0.2)
    assert is_kept(config, measured(**now), measured(reward=1.1, ndcg_10=0.19), measured()) is kept


def test_it_stops_and_keeps_the_earlier_model_when_the_measure_falls(tmp_path: Path) -> None:
    prepared = world()
    trained = start(prepared)
    asked: list[int] = []

    def falling(item_BWK: Any) -> Any:
        """From the third iteration's measurement on, every slate is worth less than any was before."""
        asked.append(1)
        return large_items(item_BWK) - (5.0 if len(asked) > 6 else 0.0)

    config = config_of(num_iterations=8, patience=2, rollout_batch_size=1000, num_steps=20)
    aligned = align(config, trained, Taste(falling), prepared, tmp_path, Bar())
    rows = metrics(tmp_path)
    kept = [row["iteration"] for row in rows if row["kept"]]
    assert kept[-1] in (1, 2)
    assert rows[-1]["iteration"] == kept[-1] + 2
    weights = torch.load(tmp_path / "generator.pt", weights_only=True)
    for name, tensor in aligned.generator.state_dict().items():
        assert torch.equal(tensor, weights[name])


RESUMED = config_of(num_iterations=2, num_steps=6, checkpoint_every=4, rollout_batch_size=20)
NUM_BATCHES = 3  # of rollouts: 48 examples


def whole_run(out: Path, bar: Bar) -> tuple[Any, list[dict[str, Any]]]:
    trained = start(world(), EXPERTS)
    generator = align(RESUMED, trained, Taste(distinct_codes), world(), out, bar).generator
    return generator.state_dict(), metrics(out)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[dict[str, Any]]]:
    torch.set_num_threads(1)
    return whole_run(tmp_path_factory.mktemp("whole"), Bar())


@pytest.mark.parametrize(
    ("deaths", "goes_on_with"),
    [
        ([2], ("rollouts 1", 0)),  # in the first rollouts
        ([NUM_BATCHES + 2], ("rollouts 1", 0)),  # before the first checkpoint with steps
        ([NUM_BATCHES + 5], ("alignment 1", 4)),  # after it: pairs come from the file
        ([NUM_BATCHES + 6 + 2], ("rollouts 2", 0)),  # in the second rollouts
        ([NUM_BATCHES + 5, 4, 8], ("alignment 2", 4)),  # again and again
    ],
)
def test_a_run_that_died_and_goes_on_gives_bitwise_the_same(
    tmp_path: Path, uninterrupted: Any, deaths: list[int], goes_on_with: tuple[str, int]
) -> None:
    for death in deaths:
        with pytest.raises(Killed):
            whole_run(tmp_path, Bar(death))
        torch.manual_seed(123)  # another process has another random state
    bar = Bar()
    weights, rows = whole_run(tmp_path, bar)
    assert bar.starts[0] == goes_on_with
    assert rows == uninterrupted[1]
    for name, tensor in weights.items():
        assert torch.equal(tensor, uninterrupted[0][name])
    assert not (tmp_path / "rollouts.npz").exists()


def test_the_control_takes_the_same_supervised_batches(tmp_path: Path) -> None:
    """Without weight on preferences, alignment is the control."""
    prepared, taste = world(), Taste(large_items)
    config = {"num_iterations": 2, "num_steps": 5, "preference_weight": 0.0}
    align(config_of(**config), start(prepared), taste, prepared, tmp_path / "a", Bar())
    align(config_of(**config, control="supervised"), start(prepared), taste, prepared, tmp_path / "b", Bar())
    for left, right in zip(metrics(tmp_path / "a"), metrics(tmp_path / "b"), strict=True):
        assert left["valid_reward"] == right["valid_reward"]
        if left["iteration"]:
            assert left["ntp_loss"] == pytest.approx(right["ntp_loss"], abs=1e-6)


def test_an_item_wise_generator_is_refused(tmp_path: Path) -> None:
    prepared = world()
    short = generator_of(prepared, 6, 2)
    spec = {**short.spec.__dict__, "slate_size": 1}
    generator = type(short)(short.config, type(short.spec)(**spec))
    trained = TrainedGenerator(generator=generator, catalog=TrainingCatalog.build(prepared, SIDS))
    with pytest.raises(ValueError, match=r"train.targets = session"):
        align(config_of(), trained, Taste(large_items), prepared, tmp_path, Bar())


def test_without_validation_examples_it_says_so(tmp_path: Path) -> None:
    prepared = world()
    prepared.splits["valid"] = prepared.splits["valid"][np.zeros(0, dtype=np.int64)]
    with pytest.raises(ValueError, match="no validation examples"):
        align(config_of(), start(prepared), Taste(large_items), prepared, tmp_path, Bar())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "align.num_steps must be at least 1, is 0"),
        ({"num_candidates": 1}, "align.num_candidates must be at least 2"),
        ({"valid_beam_width": 9}, "align.valid_beam_width must be at least 10"),
        ({"preference_share": 0.0}, r"align.preference_share must lie in \(0, 1\]"),
        ({"beta": 0.0}, "align.beta must be positive"),
        ({"learning_rate": float("nan")}, "align.learning_rate must be positive"),
        ({"preference_weight": -1.0}, "align.preference_weight must not be negative"),
        ({"max_ndcg_drop": 1.5}, r"align.max_ndcg_drop must lie in \[0, 1\]"),
        ({"clip": 0.0}, "align.clip must be positive"),
        ({"objective": "ecpo", "candidates": "beam"}, "align.candidates must be sampled for grpo and ecpo, is 'beam'"),
        ({"objective": "ppo"}, "align.objective must be one of dpo, grpo, ecpo, is 'ppo'"),
        ({"candidates": "greedy"}, "align.candidates must be one of beam, sampled, is 'greedy'"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignConfig(**values)
