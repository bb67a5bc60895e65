"""Resumption: wherever a run dies, going on gives bitwise what an uninterrupted run gives."""

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from training_data import MODEL, config_of, grid_sids, walks

from model_export.progress import Progress
from model_export.train import checkpoint as checkpoint_module
from model_export.train import loop
from model_export.train.stage import train

PREPARED = walks(20, 20, 10)  # 140 examples: 9 steps an epoch
SIDS = grid_sids(20, 4, 3)
CONFIG = config_of(
    checkpoint_every=4, max_epochs=3, patience=0, history_dropout=0.3, num_valid_examples=12, learning_rate=3e-3
)
# With biases and loads of experts to be brought back, too.
BALANCED = dataclasses.replace(MODEL, expert_bias_rate=0.01)
Result = tuple[dict[str, torch.Tensor], list[dict[str, float]], dict[str, Any]]


class Killed(BaseException):
    """Not an Exception, as a signal is not."""


class Bar(Progress):
    """Dies when the step of a number has been done."""

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.dies_at = dies_at
        self.steps: list[int] = []

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Any]:
        self.steps.append(done)
        bar = self

        class Task:
            def advance(self, steps: int = 1, note: str = "") -> None:
                bar.steps.append(bar.steps[-1] + steps)
                if bar.steps[-1] == bar.dies_at:
                    raise Killed

        yield Task()


def run(out: Path, bar: Bar) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained = train(CONFIG, BALANCED, PREPARED, SIDS, (4, 4, 4), out, bar)
    finally:
        torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["train_s"]
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    return trained.generator.state_dict(), rows, state


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(tmp_path_factory.mktemp("whole"), Bar())


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


@pytest.mark.parametrize(
    ("deaths", "goes_on_from"),
    [
        ([2], [0, 0]),  # before any checkpoint
        ([6], [0, 4]),  # in the middle of the first epoch
        ([9], [0, 8]),  # after the last step of an epoch, before its figures
        ([10], [0, 9]),  # just after an epoch
        ([15], [0, 12]),  # in the middle of the second
        ([7, 11, 14, 27], [0, 4, 9, 12, 24]),  # again and again
    ],
)
def test_a_run_that_died_and_goes_on_gives_bitwise_the_same(
    tmp_path: Path, uninterrupted: Result, deaths: list[int], goes_on_from: list[int]
) -> None:
    starts = []
    for death in deaths:
        bar = Bar(death)
        with pytest.raises(Killed):
            run(tmp_path, bar)
        starts.append(bar.steps[0])
        torch.manual_seed(123)  # another process has another random state
    bar = Bar()
    resumed = run(tmp_path, bar)
    assert [*starts, bar.steps[0]] == goes_on_from
    assert bar.steps[-1] == 27
    assert_same(resumed, uninterrupted)
    assert resumed[2]["progress"]["best_epoch"] == uninterrupted[2]["progress"]["best_epoch"]


def _dies_in_the_nth(call: Callable[..., Any], number: int, *, after: bool = False) -> Callable[..., Any]:
    calls = iter(range(1000))

    def dying(*arguments: Any, **named: Any) -> Any:
        mine = next(calls)
        if mine == number and not after:
            raise Killed
        result = call(*arguments, **named)
        if mine == number:
            raise Killed
        return result

    return dying


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["save_weights", "save_checkpoint"])
def test_a_death_between_the_files_of_an_epoch_leaves_nothing_twice(
    tmp_path: Path, uninterrupted: Result, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    # The third checkpoint is that of the end of the first epoch: weights and the row of figures are written by then.
    number = {"save_weights": 0, "save_checkpoint": 2}[name]
    with monkeypatch.context() as patch:
        patch.setattr(loop, name, _dies_in_the_nth(getattr(loop, name), number, after=after))
        with pytest.raises(Killed):
            run(tmp_path, Bar())
    assert_same(run(tmp_path, Bar()), uninterrupted)


def test_a_checkpoint_written_half_is_never_loaded(
    tmp_path: Path, uninterrupted: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def dying_save(state: Any, path: Path) -> None:
        if next(calls) == 1:  # the second checkpoint: of step 8
            path.write_bytes(b"PK half of a file")
            raise Killed
        torch_save(state, path)

    torch_save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.torch, "save", dying_save)
        with pytest.raises(Killed):
            run(tmp_path, Bar())
    assert {"checkpoint.pt", ".checkpoint.pt.writing"} <= {file.name for file in tmp_path.iterdir()}
    bar = Bar()
    assert_same(run(tmp_path, bar), uninterrupted)
    assert bar.steps[0] == 4


def test_a_row_of_figures_cut_short_by_a_crash_is_forgotten(tmp_path: Path, uninterrupted: Result) -> None:
    with pytest.raises(Killed):
        run(tmp_path, Bar(10))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')
    assert_same(run(tmp_path, Bar()), uninterrupted)


def test_a_finished_run_does_not_run_again(tmp_path: Path, uninterrupted: Result) -> None:
    run(tmp_path, Bar())
    bar = Bar()
    assert_same(run(tmp_path, bar), uninterrupted)
    assert bar.steps == [27]


def test_the_seed_decides(tmp_path: Path, uninterrupted: Result) -> None:
    torch.manual_seed(99)
    assert_same(run(tmp_path / "same", Bar()), uninterrupted)
