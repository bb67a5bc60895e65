"""Plans run to their report: phases, resuming, the cap on CPU time, what breaks."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from trial_plans import GENERATOR, PLAN, SASREC, write_plan

from model_export.data.prepared import PreparedData
from model_export.evaluate.baselines.cooccurrence import Cooccurrence, CooccurrenceConfig
from model_export.evaluate.baselines.sasrec import SasRec
from model_export.evaluate.recorded import RecordedLists
from model_export.progress import Progress
from model_export.trials.baselines import SasRecKind
from model_export.trials.generators import GeneratorKind
from model_export.trials.kinds import FitTask
from model_export.trials.report import TrialsReport, report_folder
from model_export.trials.run import run_trials
from model_export.trials.shared import Shared
from model_export.trials.trial import LISTS, METER, RESULT, Result

ALL = {
    **PLAN["models"],
    "content": {"kind": "content", "grid": [{"content": {"decay": 0.3}}, {"content": {"decay": 0.9}}]},
    "sasrec": {
        "kind": "sasrec",
        "settings": SASREC,
        "grid": [{"sasrec": {"learning_rate": 0.01}}, {"sasrec": {"learning_rate": 1e-5}}],
    },
    "generator": {
        "kind": "generator",
        "settings": GENERATOR,
        "grid": [{"train": {"learning_rate": 0.01}}, {"train": {"learning_rate": 1e-5}}],
    },
}
ENDLESS = {
    "cooccurrence": PLAN["models"]["cooccurrence"],
    "sasrec": {
        "kind": "sasrec",
        "settings": {"sasrec": {**SASREC["sasrec"], "max_epochs": 100_000, "patience": 100_000}},
        "grid": [{}, {"sasrec": {"learning_rate": 0.01}}],
    },
}


def results(out: Path) -> dict[str, tuple[int, str]]:
    """When each result was written, and what it says."""
    return {
        str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_text()) for path in sorted(out.rglob(RESULT))
    }


@pytest.fixture(scope="module")
def whole(tiny_log, tmp_path_factory) -> tuple[Path, Path, TrialsReport]:
    """Plan, folder and report of a run of every kind, two trials side by side."""
    folder = tmp_path_factory.mktemp("whole")
    plan = write_plan(folder / "tiny.toml", models=ALL, subject="generator")
    return plan, folder / "out", run_trials(plan, tiny_log, folder / "out", jobs=2)


def test_every_model_gets_its_trials_and_the_best_of_each_is_refitted_with_all_seeds(whole):
    _, out, report = whole
    assert [(model.name, len(model.trials), model.num_seeds) for model in report.models] == [
        ("popularity", 1, 1), ("cooccurrence", 2, 1), ("content", 2, 1), ("sasrec", 2, 2), ("generator", 2, 2)
    ]  # fmt: skip
    for model in report.models:
        values = [trial.value for trial in model.trials]
        assert all(trial.status == "done" for trial in model.trials)
        assert model.chosen == values.index(max(values))
        assert not model.is_stopped
    sasrec, generator = report.models[3:]
    assert sasrec.num_parameters > 1000 < generator.num_parameters
    assert sasrec.search_cpu_s > 0.1 < generator.refit_cpu_s
    seeds = {row.name: row.num_seeds for row in report.test.splits[0].recommenders}
    assert seeds == {"popularity": 1, "cooccurrence": 1, "content": 1, "sasrec": 2, "generator": 2}
    assert {row.other for row in report.test.splits[0].comparisons} == set(seeds) - {"generator"}
    epochs = {
        model.name: {Result.load(path.parent).num_epochs for path in (out / "refit" / model.name).rglob(RESULT)}
        for model in report.models
    }
    assert epochs == {model.name: {model.trials[model.chosen].num_epochs} for model in report.models}


def test_search_sees_no_validation_event_in_training_and_the_refit_sees_all(whole):
    _, out, report = whole
    train, both = (PreparedData.load(out / name) for name in ("prepared", "prepared-refit"))
    assert len(train.examples("valid")) > 0 == len(both.examples("valid"))
    assert both.train_events().sum() > train.train_events().sum()
    assert report.test.data.num_train_events == both.train_events().sum()


def test_without_a_refit_the_final_fits_see_the_train_part_alone(tmp_path, tiny_log):
    models = {"cooccurrence": {"kind": "cooccurrence"}, "sasrec": {"kind": "sasrec", "settings": SASREC}}
    changes = {"models": models, "num_trials": 1, "refit": False}
    out = tmp_path / "out"
    report = run_trials(write_plan(tmp_path / "plan.toml", **changes), tiny_log, out, jobs=2)
    train = PreparedData.load(out / "prepared")
    both = train.refit()
    assert report.test.data.num_train_events == train.train_events().sum() < both.train_events().sum()
    assert not (out / "prepared-refit").exists()
    (file,) = out.glob(f"refit/cooccurrence/*/{LISTS}")
    examples = train.examples("test")[:40]
    lists = RecordedLists.load(file)
    examples = examples[np.isin(examples.target_start, lists.key_E["item"])]
    assert len(examples) > 10
    of_train, of_both = (Cooccurrence(data, CooccurrenceConfig()).rank(examples, 10) for data in (train, both))
    np.testing.assert_array_equal(lists.rank(examples, 10), of_train)
    assert (of_train != of_both).any()
    assert report.models[1].num_seeds == 2
    # One of seed 0, for its trial and the final fit, and one of seed 1: both chose their epoch on validation.
    assert len(list((out / "shared").glob("sasrec-*.pt"))) == 2


def test_equal_fits_of_sasrec_are_trained_once_and_give_identical_lists(whole, tmp_path, monkeypatch):
    _, out, _ = whole
    prepared = PreparedData.load(out / "prepared")
    num_trained = 0
    train = SasRec.fit

    def counted(self, *arguments, **values):
        nonlocal num_trained
        num_trained += 1
        return train(self, *arguments, **values)

    monkeypatch.setattr(SasRec, "fit", counted)

    def fit(seed: int = 0, num_epochs: int | None = None, tables=SASREC, name: str = "prepared"):
        task = FitTask(
            prepared=PreparedData.load(out / name), recipe_name="default", tables=tables, seed=seed,
            num_epochs=num_epochs, out=tmp_path, shared=Shared(tmp_path / "shared"),
            progress=Progress(Console(file=io.StringIO())),
        )  # fmt: skip
        fitted = SasRecKind().fit(task)
        return fitted, fitted.recommender.rank(prepared.examples("test"), 10)

    (first, first_lists), (again, again_lists) = fit(), fit()
    assert num_trained == 1
    np.testing.assert_array_equal(first_lists, again_lists)
    assert (first.num_epochs, first.num_parameters) == (again.num_epochs, again.num_parameters)
    assert first.num_epochs in (1, 2)
    wider = {"sasrec": {**SASREC["sasrec"], "width": 8}}
    others = [fit(seed=1), fit(num_epochs=1), fit(tables=wider), fit(name="prepared-refit", num_epochs=1)]
    assert num_trained == 5, "another seed, number of epochs, setting or data set is another fit"
    assert all((lists != first_lists).any() for _, lists in [others[0], *others[2:]])


def test_a_second_run_does_nothing_and_says_the_same(whole, tiny_log):
    plan, out, report = whole
    before = results(out)
    again = run_trials(plan, tiny_log, out)
    assert results(out) == before
    assert again.models == report.models
    assert TrialsReport.load(report_folder(out, "tiny")).model_dump_json() == again.model_dump_json()
    assert again.test.splits[0].comparisons == report.test.splits[0].comparisons


def test_another_plan_in_the_same_folder_has_a_report_of_its_own_and_shares_the_fits(whole, tiny_log, tmp_path):
    _, out, _ = whole
    before, report = results(out), (report_folder(out, "tiny") / "report.json").read_bytes()
    one = write_plan(tmp_path / "one.toml", models={"popularity": ALL["popularity"]}, subject="popularity")
    run_trials(one, tiny_log, out)
    assert results(out) == before
    assert TrialsReport.load(report_folder(out, "one")).name == "one"
    assert (report_folder(out, "tiny") / "report.json").read_bytes() == report


def test_the_digest_of_a_plan_covers_the_recipe_that_it_starts_from(tiny_log, tmp_path):
    recipe, models = tmp_path / "own.toml", {"popularity": {"kind": "popularity"}}
    plan = write_plan(tmp_path / "one.toml", models=models, subject="popularity", recipe=str(recipe))
    digests = []
    for number, rate in enumerate((0.1, 0.1, 0.2)):
        recipe.write_text(f'extends = "default"\npurpose = "tests"\n[train]\nlearning_rate = {rate}\n')
        digests.append(run_trials(plan, tiny_log, tmp_path / f"out{number}").plan_digest)
    assert digests[0] == digests[1] != digests[2]


def test_generators_of_one_tokenization_share_it(whole):
    _, out, _ = whole
    # One on train, and one on train and valid together.
    assert len(list((out / "shared").glob("tokenize-*/sids.npy"))) == 2


def test_the_report_names_effort_and_choice(whole):
    _, out, report = whole
    text = (report_folder(out, "tiny") / "report.md").read_text()
    generator = report.models[-1]
    assert "Every model with settings gets 2 trials and at most 1 CPU-hours" in text
    assert f"| generator | 2 of 2 | {generator.trials[generator.chosen].value:.4f} |" in text
    assert "train.learning_rate=" in text
    assert "#### Item level (" in text
    assert "repeat policy `exclude`" in text


def test_a_model_that_used_its_cpu_time_is_stopped_says_so_and_goes_on_under_a_higher_cap(tmp_path, tiny_log):
    plan = write_plan(tmp_path / "plan.toml", models=ENDLESS, max_cpu_hours=2 / 3600)
    report = run_trials(plan, tiny_log, tmp_path / "out", jobs=2)
    sasrec = report.models[1]
    assert sasrec.is_stopped
    assert sasrec.chosen is None
    assert {trial.status for trial in sasrec.trials} == {"stopped"}
    assert 2 < sasrec.search_cpu_s < 30
    assert [row.name for row in report.test.splits[0].recommenders] == ["cooccurrence"]
    text = (report_folder(tmp_path / "out", "plan") / "report.md").read_text()
    assert "the model's trials had used their 0.000555556 CPU-hours" in text
    assert "| sasrec | 0 of 2, stopped |" in text
    before = results(tmp_path / "out")
    run_trials(plan, tiny_log, tmp_path / "out")
    assert results(tmp_path / "out") == before
    higher = write_plan(tmp_path / "plan.toml", models=ENDLESS, max_cpu_hours=sasrec.search_cpu_s / 3600 + 1e-4)
    assert run_trials(higher, tiny_log, tmp_path / "out").models[1].search_cpu_s > sasrec.search_cpu_s


def test_a_setting_that_cannot_be_trained_is_a_failed_trial_and_another_is_chosen(tmp_path, tiny_log):
    models = {
        "sasrec": {
            "kind": "sasrec",
            "settings": SASREC,
            "grid": [{"sasrec": {"learning_rate": 1e30, "warmup_steps": 1}}, {}],
        }
    }
    plan = write_plan(tmp_path / "plan.toml", models=models, subject="sasrec", seeds=[0])
    (sasrec,) = run_trials(plan, tiny_log, tmp_path / "out").models
    assert [trial.status for trial in sasrec.trials] == ["failed", "done"]
    assert "NaN" in sasrec.trials[0].reason
    assert sasrec.chosen == 1


def test_other_data_or_settings_of_prepare_need_another_folder(tmp_path, tiny_log):
    plan = write_plan(tmp_path / "plan.toml")
    run_trials(plan, tiny_log, tmp_path / "out")
    write_plan(plan, prepare={"slate_size": 2, "repeat_policy": "exclude"})
    with pytest.raises(ValueError, match="name another --out"):
        run_trials(plan, tiny_log, tmp_path / "out")


def children(process_id: int) -> set[int]:
    """Every process below one."""
    found = set()
    for task in Path(f"/proc/{process_id}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | children(child)
    return found


def wait_for(condition, what: str) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"within a minute there was no {what}")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_run_that_is_killed_leaves_no_process_and_goes_on_where_it_was(tmp_path, tiny_log):
    plan = write_plan(tmp_path / "plan.toml", models=ENDLESS)
    script = tmp_path / "killed.py"
    script.write_text(
        "from pathlib import Path\nfrom model_export.trials.run import run_trials\n"
        f"if __name__ == '__main__':\n    run_trials({str(plan)!r}, Path({str(tiny_log)!r}), Path('out'), jobs=1)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    with subprocess.Popen([sys.executable, script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}) as process:
        out = tmp_path / "out"
        wait_for(lambda: list(out.glob(f"search/sasrec/0-*/{METER}")), "trial of sasrec")
        below = children(process.pid)
        process.kill()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in below), "end of its processes")
    before = results(out)
    assert [json.loads(text)["status"] for _, text in before.values()] == ["done", "done"]
    (meter,) = out.glob(f"search/sasrec/0-*/{METER}")
    spent_s = json.loads(meter.read_text())["cpu_s"]
    cap = write_plan(plan, models=ENDLESS, max_cpu_hours=(spent_s + 0.5) / 3600)
    report = run_trials(cap, tiny_log, out)
    assert results(out).items() >= before.items(), "what was done is not done again"
    assert report.models[1].search_cpu_s >= spent_s, "what the killed attempt used counts"
    assert report.models[1].is_stopped


def test_a_refit_stops_where_the_schedule_of_more_epochs_stood(whole, tmp_path):
    _, out, _ = whole
    prepared = PreparedData.load(out / "prepared-refit")

    def fit(num_epochs: int | None) -> tuple[list[dict[str, float]], np.ndarray]:
        shared = Shared(tmp_path / str(num_epochs))
        task = FitTask(
            prepared=prepared, recipe_name="default", tables=GENERATOR, seed=0, num_epochs=num_epochs, out=tmp_path,
            shared=shared, progress=Progress(Console(file=io.StringIO())),
        )  # fmt: skip
        fitted = GeneratorKind().fit(task)
        (metrics,) = shared.folder.glob("train-*/metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert fitted.num_epochs == len(rows)
        return rows, fitted.recommender.rank(prepared.examples("test"), 10)

    (whole_rows, whole_lists), (rows, lists) = fit(None), fit(2)
    assert len(whole_rows) == GENERATOR["train"]["max_epochs"] == 3
    for key in ("loss", "learning_rate", "step"):
        assert [row[key] for row in rows] == [row[key] for row in whole_rows[:2]]
    assert not (lists == whole_lists).all(), "the third epoch would have changed the weights"
