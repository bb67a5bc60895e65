"""The pipeline of stages: what is done stays done, what broke is redone, and nothing is silently something else.

Longer than other files, because all of it begins with one finished run, which takes a while.
"""

import gzip
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_build
import torch
from rich.console import Console

from model_export.data.errors import DataError
from model_export.pipeline import Run, StageError
from model_export.progress import Progress
from model_export.recipe import Recipe, load_recipe
from service.bundle.manifest import FORMAT_VERSION

STAGES = ("prepare", "tokenize", "train", "evaluate", "export")
WORK = {
    "prepare": "model_export.data.preparation.prepare",
    "tokenize": "model_export.tokenizer.stage.tokenize",
    "evaluate": "model_export.evaluate.evaluation.evaluate",
    "export": "model_export.onnx.export.export",
}
"""What a stage calls."""


class Broken(Exception):
    """What a stage dies of here."""


def fake_export(*arguments: Any) -> Any:
    """Writes a bundle's manifest alone: the real export takes long and is tested with the command."""
    record, out = arguments[4], arguments[5]
    out.mkdir()
    manifest = {"format_version": FORMAT_VERSION, "recipe": record.recipe, "metrics": record.metrics}
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "weights.data").write_bytes(os.urandom(100))
    return type("Parity", (), {"num_requests": 1, "num_identical": 1, "max_logprob_difference": 0.0})()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_build.write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread; no real export."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(WORK["export"], fake_export)
    yield
    torch.set_num_threads(threads)


def tiny_recipe(*settings: str) -> Recipe:
    return load_recipe("default", [*tiny_build.SETTINGS, "train.max_epochs=1", *settings])


def run_in(folder: Path, *settings: str) -> tuple[Run, io.StringIO]:
    out = io.StringIO()
    return Run(tiny_recipe(*settings), folder, Progress(Console(file=out))), out


def state_of(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WORK["export"], fake_export)
        run_in(folder)[0].build(log)
    return folder


@pytest.fixture
def copy(tmp_path: Path, finished: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_second_build_runs_nothing(copy: Path, log: Path) -> None:
    before = state_of(copy)
    run, out = run_in(copy)
    assert run.build(log) == copy / "export"
    assert state_of(copy) == before
    said = out.getvalue().splitlines()
    assert [line.partition(":")[0] for line in said] == list(STAGES)
    assert all("done already" in line for line in said)


def test_a_bundle_of_an_older_format_is_exported_again(copy: Path, log: Path) -> None:
    manifest = copy / "export" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": FORMAT_VERSION - 1}))
    run, out = run_in(copy)
    run.build(log)
    assert json.loads(manifest.read_text())["format_version"] == FORMAT_VERSION
    assert f"export: the bundle is of format {FORMAT_VERSION - 1}, this version writes" in out.getvalue()
    assert "export: done already" not in out.getvalue()


@pytest.mark.parametrize("stage", ["prepare", "tokenize", "evaluate", "export"])
def test_a_stage_that_broke_in_the_middle_is_redone_from_scratch_and_so_are_the_later_ones(
    copy: Path, log: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    for done in STAGES[STAGES.index(stage) :]:
        (copy / f"{done}.done").unlink()
    earlier = {name: (copy / f"{name}.done").stat().st_mtime_ns for name in STAGES[: STAGES.index(stage)]}

    def dies(*arguments: Any, **named: Any) -> None:
        out = next(argument for argument in arguments if isinstance(argument, Path) and argument.name == stage)
        out.mkdir(exist_ok=True)
        (out / "left over").touch()
        raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(WORK[stage], dies)
        with pytest.raises(Broken):
            run_in(copy)[0].build(log)
    assert (copy / stage / "left over").exists()
    assert not (copy / f"{stage}.done").exists()
    run, out = run_in(copy)
    run.build(log)
    assert not (copy / stage / "left over").exists()
    said = [line for line in out.getvalue().splitlines() if not line.startswith((" ", "sasrec"))]
    assert ["done already" in line for line in said] == [name in earlier for name in STAGES]
    assert {name: (copy / f"{name}.done").stat().st_mtime_ns for name in earlier} == earlier
    assert all((copy / f"{name}.done").exists() for name in STAGES)


def test_training_that_broke_goes_on_from_its_checkpoint(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "train.done").unlink()
    shutil.rmtree(copy / "train")

    def breaks_at(step: int) -> Any:
        def advance(task: Any, steps: int = 1, note: str = "") -> None:
            task._done += steps
            if task._done == step:
                raise Broken

        return advance

    settings = ("train.checkpoint_every=1", "train.batch_size=256")
    with monkeypatch.context() as patch:
        patch.setattr(Progress.Task, "advance", breaks_at(3))
        with pytest.raises(Broken):
            run_in(copy, *settings)[0].train()
    steps: list[int] = []
    monkeypatch.setattr(Progress.Task, "advance", lambda task, steps_=1, note="": steps.append(steps_))
    run_in(copy, *settings)[0].train()
    rows = [json.loads(line) for line in (copy / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0]
    # The checkpoint of step 3 was not written yet when it broke: steps from the third on are run.
    assert len(steps) == rows[0]["step"] - 2


@pytest.mark.parametrize(
    ("stage", "settings", "key"),
    [
        ("prepare", ["prepare.slate_size=2"], "prepare.slate_size = 3, not 2"),
        ("tokenize", ["tokenize.seed=5"], "tokenize.seed = 0, not 5"),
        ("train", ["train.max_epochs=7"], "train.max_epochs = 1, not 7"),
        ("train", ["model.width=32"], "model.width = 16, not 32"),
        ("evaluate", ["sasrec.seed=5"], "sasrec.seed = 0, not 5"),
        ("export", ["export.beam_width=9"], "export.beam_width = 6, not 9"),
    ],
)
def test_a_done_stage_is_not_taken_for_one_with_other_settings(
    copy: Path, log: Path, stage: str, settings: list[str], key: str
) -> None:
    run, _ = run_in(copy, *settings)
    with pytest.raises(StageError, match=key) as caught:
        run.prepare(log) if stage == "prepare" else getattr(run, stage)()
    assert f"{stage}.done" in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused_and_not_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "train.done").rename(copy / "train.begun")
    with pytest.raises(StageError, match=r"train\.begun: was run with model\.width = 16, not 8"):
        run_in(copy, "model.width=8")[0].train()


def test_prepare_from_other_data_is_refused(copy: Path, tmp_path: Path, log: Path) -> None:
    other = Path(shutil.copytree(log, tmp_path / "other"))
    os.utime(other / "events.parquet", ns=(1, 1))
    with pytest.raises(StageError, match="prepare read other data"):
        run_in(copy)[0].prepare(other)


def test_redoing_a_stage_redoes_what_was_made_from_it(copy: Path) -> None:
    (copy / "tokenize.done").unlink()
    run, _ = run_in(copy, "tokenize.seed=5")
    run.tokenize()
    with pytest.raises(StageError, match="run `oneslate train` with this --out first"):
        run.evaluate()
    run.train()  # from scratch: the old checkpoint is of other sids
    rows = (copy / "train" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 1


def test_the_bundle_records_what_each_stage_was_run_with(copy: Path) -> None:
    (copy / "export.done").unlink()
    run, _ = run_in(copy, "train.max_epochs=40", "prepare.slate_size=2", "export.beam_width=9")
    manifest = json.loads((run.export() / "manifest.json").read_text())
    assert manifest["recipe"]["train"]["max_epochs"] == 1
    assert manifest["recipe"]["prepare"]["slate_size"] == 3
    assert manifest["recipe"]["export"]["beam_width"] == 9
    assert {name.partition("/")[0] for name in manifest["metrics"]} == {"item", "slate"}


LAX = ("align.max_ndcg_drop=1.0", "align.max_diversity_drop=1.0", "align.num_steps=3", "align.num_valid_examples=20")
"""Few steps, after which the model is kept whatever they did to it."""


def run_small(folder: Path, *settings: str) -> tuple[Run, io.StringIO]:
    """As `run_in`, with the simulator's small recipe: reward model and alignment included."""
    out = io.StringIO()
    recipe = load_recipe("simulator-small", [*tiny_build.SETTINGS, "train.max_epochs=1", *LAX, *settings])
    return Run(recipe, folder, Progress(Console(file=out))), out


def test_a_recipe_that_aligns_is_evaluated_and_exported_as_aligned(copy: Path, log: Path) -> None:
    run, out = run_small(copy)
    run.build(log)
    stages = [*STAGES[:3], "reward", "align", *STAGES[3:]]
    said = [line.partition(":")[0] for line in out.getvalue().splitlines()]
    assert [word for word in said if word in stages] == stages
    assert (copy / "reward" / "report.md").exists()
    served, aligned = run.generator().generator.state_dict(), torch.load(copy / "align" / "generator.pt")
    assert all(torch.equal(served[name], weights) for name, weights in aligned.items())
    trained = run_small(copy, "align.num_iterations=0")[0].generator().generator.state_dict()
    assert (copy / "align" / "metrics.jsonl").read_text().count("\n") >= 1
    assert served.keys() == trained.keys()
    manifest = json.loads((copy / "export" / "manifest.json").read_text())
    assert manifest["recipe"]["align"]["num_iterations"] == 1


def test_a_reward_model_alone_leaves_what_was_not_made_from_it(copy: Path) -> None:
    run, _ = run_small(copy, "align.num_iterations=0")
    run.reward()
    assert all((copy / f"{stage}.done").exists() for stage in ("train", "reward", "evaluate", "export"))
    run_small(copy)[0].align()
    # Both were made from the generator as it was before.
    assert not (copy / "evaluate.done").exists()
    assert not (copy / "export.done").exists()


def test_a_recipe_that_chooses_by_reward_has_a_reward_model_without_alignment(
    copy: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def export(*arguments: Any) -> Any:
        given.append(arguments[7])
        return fake_export(*arguments)

    monkeypatch.setattr(WORK["export"], export)
    for stage in ("evaluate", "export"):  # of another recipe
        (copy / f"{stage}.done").unlink()
    chooses = ("align.num_iterations=0", "export.choice=reward")
    with pytest.raises(StageError, match="run `oneslate reward` with this --out first"):
        run_small(copy, *chooses)[0].export()
    run_small(copy, *chooses)[0].build(log)
    assert not (copy / "align").exists()
    assert [type(reward).__name__ for reward in given] == ["TrainedReward"]
    (copy / "reward.done").unlink()
    run_small(copy, *chooses)[0].reward()
    assert not (copy / "export.done").exists()


@pytest.mark.parametrize(
    ("stage", "missing"),
    [
        ("tokenize", "prepare"),
        ("train", "prepare"),
        ("reward", "prepare"),
        ("align", "train"),
        ("evaluate", "prepare"),
        ("export", "prepare"),
    ],
)
def test_a_stage_before_its_time_is_one_clear_error(tmp_path: Path, stage: str, missing: str) -> None:
    run, _ = run_in(tmp_path / "new")
    with pytest.raises(StageError, match=f"new: run `oneslate {missing}` with this --out first"):
        getattr(run, stage)()
    assert not (tmp_path / "new").exists()


def test_a_changed_recipe_or_changed_data_give_another_folder(tmp_path: Path, log: Path) -> None:
    data, items = Path(shutil.copytree(log, tmp_path / "data")), tmp_path / "items.csv"
    items.write_text("item_id\na\n")

    def folder(*settings: str, data: Path = data) -> Path:
        return Run.for_build(tiny_recipe(*settings), data, tmp_path / "runs").folder

    own_items = f"prepare.items={items}"
    folders = [folder(), folder("train.seed=1"), folder("export.beam_width=7"), folder(own_items)]
    assert folder() == folders[0]
    (data / "events.parquet").write_bytes(b"x")
    folders.append(folder())
    (data / "more.csv").touch()
    folders.append(folder())
    items.write_text("item_id\nb\nc\n")
    folders.append(folder(own_items))
    assert len(set(folders)) == len(folders)
    assert all(found.parent == tmp_path / "runs" / "default" for found in folders)


def test_from_where_the_data_are_named_does_not_matter(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = Run.for_build(tiny_recipe(), log).folder
    monkeypatch.chdir(log.parent)
    assert Run.for_build(tiny_recipe(), Path(log.name)).folder == absolute
    monkeypatch.chdir(log)
    assert Run.for_build(tiny_recipe(), Path()).folder == absolute


def test_missing_data_is_an_error_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        run_in(tmp_path / "run")[0].build(tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()


def test_a_file_may_be_named_without_its_gz_and_what_was_not_made_is_not_given(tmp_path: Path) -> None:
    rows = "".join(f"u{n % 7},i{n % 5},{1_700_000_000 + 60 * n}\n" for n in range(80))
    (tmp_path / "events.csv.gz").write_bytes(gzip.compress(f"user_id,item_id,timestamp\n{rows}".encode()))
    run, _ = run_in(tmp_path / "run", "prepare.format=table", "prepare.repeat_policy=allow")
    run.prepare(tmp_path / "events.csv")
    assert run.prepared().num_events == 80
    for made in (run.tokenization, run.generator, run.reward_model, run.report):
        with pytest.raises(StageError, match="with this --out first"):
            made()


def test_a_place_that_cannot_take_the_bundle_is_refused_before_any_work(tmp_path: Path, log: Path) -> None:
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.txt").write_text("years of work")
    file = tmp_path / "file"
    file.touch()
    for target in (mine, file, file / "bundle", file / "deep" / "bundle"):
        with pytest.raises(StageError, match=str(target)):
            run_in(tmp_path / "run")[0].build(log, target)
    assert not (tmp_path / "run").exists()
    assert (mine / "chapter.txt").read_text() == "years of work"


def test_export_refuses_the_place_before_the_work_too(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (copy / "export.done").unlink()
    with pytest.raises(StageError, match="no bundle"):
        run_in(copy)[0].export(tmp_path / "file")
    assert not (copy / "export.done").exists()


@pytest.mark.parametrize("target", ["bundle", "deep/er/bundle", "empty"])
def test_the_bundle_is_put_where_it_was_asked_for(copy: Path, log: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    assert run_in(copy)[0].build(log, tmp_path / target) == tmp_path / target
    for name in ("manifest.json", "weights.data"):
        assert (tmp_path / target / name).read_bytes() == (copy / "export" / name).read_bytes()


def test_an_old_bundle_stays_whole_until_the_new_one_is(
    copy: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text("old")
    (target / "only old").touch()

    def full_disk(source: Path, staging: Path) -> None:
        staging.mkdir()
        (staging / "half").touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", full_disk)
        with pytest.raises(OSError, match="No space"):
            run_in(copy)[0].build(log, target)
    assert sorted(file.name for file in target.iterdir()) == ["manifest.json", "only old"]

    halves: list[set[str]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                before = target.stat().st_ino
                names = {file.name for file in target.iterdir()}
                if target.stat().st_ino != before:
                    continue  # replaced while it was listed
            except FileNotFoundError:
                continue
            if names not in ({"manifest.json", "only old"}, {"manifest.json", "weights.data"}):
                halves.append(names)

    thread = threading.Thread(target=look)
    thread.start()
    run_in(copy)[0].build(log, target)
    stop.set()
    thread.join()
    assert halves == []
    assert {file.name for file in target.iterdir()} == {"manifest.json", "weights.data"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bundle", "run"]
