"""Alignment and best of N in a plan: what they share with their start, what they give, what they refuse."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from trial_plans import ENOUGH, GENERATOR, write_plan

from model_export.data.prepared import PreparedData
from model_export.evaluate.config import EvaluateConfig
from model_export.evaluate.recorded import RecordedLists
from model_export.evaluate.samples import draw_samples
from model_export.progress import Progress
from model_export.reward.reward_scorer import RewardScorer
from model_export.reward.stage import TrainedReward
from model_export.reward.visits import RewardItems
from model_export.tokenizer.tokenization import Tokenization
from model_export.trials.kinds import FitTask, plan_recipe
from model_export.trials.plan import PlanError
from model_export.trials.registry import kind_of
from model_export.trials.report import report_folder
from model_export.trials.run import run_trials
from model_export.trials.shared import Shared
from model_export.trials.trial import LISTS

REWARD = {
    "signals": ["click"], "width": 8, "num_heads": 1, "feed_forward_width": 16, "tower_width": 8, "history_length": 12,
    "max_epochs": 1,
}  # fmt: skip
ALIGN = {
    "num_iterations": 1, "preference_share": 0.1, "num_candidates": 4, "num_steps": 6, "batch_size": 8,
    "supervised_batch_size": 32, "learning_rate": 3e-3, "num_valid_examples": 30, "valid_beam_width": 10,
    "max_ndcg_drop": 1.0, "max_diversity_drop": 1.0,
}  # fmt: skip
ALIGNED = {**GENERATOR, "reward": REWARD, "align": ALIGN}
BEAM = {"num_candidates": GENERATOR["export"]["beam_width"], "candidates": "beam"}
BEST_OF_N = {name: table for name, table in ALIGNED.items() if name not in ("align", "export")} | {"best_of_n": BEAM}
MODELS = {
    "start": {"kind": "generator", "settings": GENERATOR},
    "aligned": {"kind": "aligned", "settings": ALIGNED},
    "supervised": {"kind": "aligned", "settings": {**ALIGNED, "align": {**ALIGN, "control": "supervised"}}},
    "best-of-n": {"kind": "best_of_n", "settings": BEST_OF_N},
}
CHANGES: dict[str, Any] = {
    **ENOUGH,
    "prepare": {**ENOUGH["prepare"], "repeat_policy": "exclude"},
    "models": MODELS,
    "subject": "aligned",
    "num_trials": 1,
    "seeds": [0],
    "refit": False,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a plan with alignment, its start and its controls, run to its end."""
    folder = tmp_path_factory.mktemp("aligned")
    report = run_trials(write_plan(folder / "tiny.toml", **CHANGES), None, folder / "out", jobs=2)
    assert {trial.status for model in report.models for trial in model.trials} == {"done"}
    return folder / "out"


def prepared_of(out: Path) -> PreparedData:
    return PreparedData.load(out / "prepared")


def slates_of(out: Path, name: str) -> tuple[Any, np.ndarray]:
    """Test examples, and a model's slates for them."""
    (folder,) = (out / "refit" / name).iterdir()
    config = EvaluateConfig(max_item_examples=60, max_slate_examples=40, splits=("test",))
    examples = draw_samples(config, prepared_of(out), "test")["slate"].examples
    return examples, RecordedLists.load(folder / LISTS).slates(examples, 3)


def metrics_of(out: Path, *, control: str) -> list[dict[str, Any]]:
    """Of the alignment with or without preferences."""
    runs = [
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in out.glob("shared/align-*/metrics.jsonl")
    ]
    assert len(runs) == 2
    (rows,) = (rows for rows in runs if ("accuracy" in rows[-1]) == (control == "none"))
    return rows


def scorer_of(out: Path) -> RewardScorer:
    """The reward model that the fits shared."""
    (folder,), (tokenization,) = ([*out.glob(f"shared/{stage}-*/")] for stage in ("reward", "tokenize"))
    return RewardScorer(TrainedReward.load(folder, RewardItems.of(Tokenization.load(tokenization))), prepared_of(out))


def test_alignment_its_controls_and_the_start_share_one_training_and_one_reward_model(out):
    made = sorted(path.parent.name.split("-")[0] for path in out.glob("shared/*/done"))
    assert made == ["align", "align", "reward", "train"]
    report = json.loads((report_folder(out, "tiny") / "report.json").read_text())
    parameters = {model["name"]: model["num_parameters"] for model in report["models"]}
    assert parameters["start"] == parameters["aligned"] == parameters["supervised"] < parameters["best-of-n"]


def test_best_of_n_writes_legal_slates_that_the_reward_model_likes_no_less_than_the_starts(out):
    examples, slate_EK = slates_of(out, "best-of-n")
    prepared, scorer = prepared_of(out), scorer_of(out)
    assert ((slate_EK >= 0) & (slate_EK < prepared.num_items)).all()
    for number, (first, end) in enumerate(zip(examples.history_start, examples.history_end, strict=True)):
        assert len(set(slate_EK[number]) - set(prepared.item_E[first:end])) == 3
    best_E, start_E = (
        scorer.score(examples, slates[:, None])[:, 0] for slates in (slate_EK, slates_of(out, "start")[1])
    )
    assert (best_E >= start_E - 1e-6).all(), "the beam holds the start's own slate"
    assert (best_E > start_E + 1e-6).any()


def test_alignment_and_the_supervised_control_leave_the_start_in_their_own_ways(out):
    start_EK, aligned_EK, supervised_EK = (slates_of(out, name)[1] for name in ("start", "aligned", "supervised"))
    for control in ("none", "supervised"):
        assert [row["kept"] for row in metrics_of(out, control=control)] == [True, True]
    assert (start_EK != aligned_EK).any()
    assert (start_EK != supervised_EK).any()
    assert (aligned_EK != supervised_EK).any()


def test_the_true_reward_is_drawn_beside_the_reward_and_starts_at_the_same_model(out):
    aligned, supervised = (metrics_of(out, control=control) for control in ("none", "supervised"))
    assert aligned[0] == supervised[0]
    truths = [row["valid_truth"] for rows in (aligned, supervised) for row in rows]
    assert all(isinstance(truth, float) for truth in truths)
    assert len(set(truths)) > 1


def task_of(folder: Path, prepared: PreparedData, tables: Any, **values: Any) -> FitTask:
    arguments = {
        "prepared": prepared, "recipe_name": "default", "tables": tables, "seed": 0, "num_epochs": None, "out": folder,
        "shared": Shared(folder), "progress": Progress(Console(file=io.StringIO())),
    }  # fmt: skip
    return FitTask(**{**arguments, **values})


def test_the_truth_is_not_loaded_by_who_does_not_draw_it_and_changes_no_weights(out, tmp_path):
    def asked_for() -> Any:
        raise AssertionError("the truth was loaded")

    prepared = prepared_of(out)
    kind_of("best_of_n").fit(task_of(out / "shared", prepared, BEST_OF_N, truth=asked_for))
    with pytest.raises(AssertionError, match="the truth was loaded"):
        kind_of("aligned").fit(task_of(tmp_path, prepared, ALIGNED, truth=asked_for))
    without = kind_of("aligned").fit(task_of(tmp_path, prepared, ALIGNED))
    examples, slate_EK = slates_of(out, "aligned")
    np.testing.assert_array_equal(without.recommender.slates(examples, 3), slate_EK)


def test_the_seed_is_that_of_every_model():
    recipe = plan_recipe("default", {}, seed=7)
    assert [table.seed for table in (recipe.train, recipe.sasrec, recipe.reward, recipe.align)] == [7, 7, 7, 7]


@pytest.mark.parametrize("model", ["aligned", "best-of-n"])
def test_a_plan_that_would_refit_them_is_refused_before_anything_is_done(tmp_path, model):
    plan = write_plan(
        tmp_path / "plan.toml", **{**CHANGES, "models": {model: MODELS[model]}, "subject": model, "refit": True}
    )
    with pytest.raises(PlanError, match=f"models.{model}: .*the plan must say refit = false"):
        run_trials(plan, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["aligned", "best_of_n"])
def test_a_fit_without_what_it_needs_is_refused_before_any_training(tmp_path, out, kind):
    tables = {"aligned": ALIGNED, "best_of_n": BEST_OF_N}[kind]
    train = prepared_of(out)
    item_wise = {**tables, "train": {**GENERATOR["train"], "targets": "item"}}
    cases = [
        (task_of(tmp_path / "a", train.refit(), tables), "no validation examples .* refit = false"),
        (task_of(tmp_path / "b", train, tables, num_epochs=2), "no validation examples .* refit = false"),
        (task_of(tmp_path / "c", replace(train, feedback=None), tables), "do not tell what was shown"),
        (task_of(tmp_path / "d", train, item_wise), r"train\.targets = session"),
    ]
    if kind == "aligned":
        still = {**tables, "align": {**ALIGN, "num_iterations": 0}}
        cases.append((task_of(tmp_path / "e", train, still), "num_iterations = 0 would leave the generator"))
    for task, message in cases:
        with pytest.raises(PlanError, match=message):
            kind_of(kind).fit(task)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_candidates": 0}, "num_candidates must be at least 1, not 0"),
        ({"candidates": "greedy"}, "candidates must be one of beam, sampled, not 'greedy'"),
        ({"temperature": 0.0}, "temperature must be positive, not 0"),
        ({"num_candidate": 3}, "unknown key 'num_candidate'; did you mean 'num_candidates'"),
    ],
)
def test_what_best_of_n_may_not_be_told(tmp_path, values, message):
    settings = {**BEST_OF_N, "best_of_n": values}
    changes = {**CHANGES, "models": {"best-of-n": {"kind": "best_of_n", "settings": settings}}, "subject": "best-of-n"}
    with pytest.raises(PlanError, match=rf"models.best-of-n, trial 0: \[best_of_n\]: .*{message}"):
        run_trials(write_plan(tmp_path / "plan.toml", **changes), None, tmp_path / "out")
