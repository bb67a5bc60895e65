"""The decoder bench's committed workloads, what they refuse, and the command around them."""

import dataclasses
import io
import json
import tomllib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from rich.console import Console
from small_workload import small_values

import oneslate
from loadtests.bench.decode import command
from loadtests.bench.decode.constraint import Constraint
from loadtests.bench.decode.memory import Memory
from loadtests.bench.decode.tail import Tail
from loadtests.bench.decode.throughput import Throughput
from loadtests.bench.decode.workload import DecodeWorkload, Measured
from loadtests.bench.result import Row

MORE = {
    "item": {"has_hugging_face": False, "roofline_shapes": []},
    "constraint": {"more_codebook_sizes": [], "position": 1},
    "memory": {"warm_up_runs": 1, "history_lengths": [6]},
}
WIDE = ["slate", "experts", "tail", "constraint", "catalog_wide", "memory"]


@pytest.mark.parametrize("name", sorted(command.WORKLOADS))
def test_a_committed_workload_is_the_one_that_its_file_describes(name: str) -> None:
    raw = tomllib.loads((command.FOLDER / f"{name}.toml").read_text())
    found = json.loads(json.dumps(dataclasses.asdict(command.load(name))))
    for key, value in raw.items():
        assert (found[key].items() >= value.items()) if isinstance(value, dict) else found[key] == value
    assert raw["num_rounds"] >= 5  # medians of at least five
    assert found.keys() - raw.keys() <= {"sasrec"}


def test_every_workload_of_the_command_line_is_there_and_no_other() -> None:
    assert set(get_args(oneslate.DecodeWorkloadName)) == set(command.WORKLOADS)
    assert {path.stem for path in command.FOLDER.glob("*.toml")} == set(command.WORKLOADS)
    names = [command.load(name).name for name in command.WORKLOADS]
    assert len(set(names)) == len(names)  # rows of two workloads never have the same label


@pytest.mark.parametrize("name", WIDE)
def test_the_bars_of_whole_slates_are_measured_on_one_and_the_same_problem(name: str) -> None:
    workload = command.load(name)
    assert isinstance(workload, DecodeWorkload)
    model = workload.model
    assert (workload.slate_size, workload.num_levels, workload.history_length) == (5, 3, 100)
    assert (model.encoder_layers, model.decoder_layers, model.width, model.feed_forward_width) == (4, 4, 256, 1024)
    assert (model.num_experts, model.num_active_experts) == ((24, 2) if name == "experts" else (1, 1))
    assert workload.num_excluded == workload.history_length  # as the service excludes what was seen
    assert all(width in {8, 32, 128} for width, _ in workload.shapes)


def test_sizes_and_runs_are_those_that_are_asked_for() -> None:
    slate, experts, catalog = (command.load(name) for name in ("slate", "experts", "catalog"))
    tables = {(width, size) for width in (8, 32, 128) for size in (1, 8, 64)}
    assert set(slate.shapes) == set(experts.shapes) == tables  # type: ignore[attr-defined]
    assert (catalog.num_items, *catalog.more_items) == (10**4, 10**6, 10**7)  # type: ignore[attr-defined]
    assert command.load("trie").num_items == (10**6, 10**7)  # type: ignore[attr-defined]
    step = command.load("constraint")
    assert (step.codebook_size, *step.more_codebook_sizes) == (256, 8192)  # type: ignore[attr-defined]
    assert command.load("tail").num_rounds == 2000
    assert command.load("memory").num_rounds == 10_000
    large = command.load("export")
    assert (large.slate_size, large.num_levels, large.model.decoder_layers) == (8, 3, 8)  # type: ignore[attr-defined]


def test_an_unknown_or_missing_key_of_a_workload_is_refused(tmp_path: Path) -> None:
    text = (command.FOLDER / "item.toml").read_text()
    for bad in (text.replace("seed", "sead"), text.replace("seed = 0", ""), text.replace("\nwidth", "\nwidht")):
        assert bad != text
        (tmp_path / "bad.toml").write_text(bad)
        with pytest.raises(TypeError):
            Throughput.load(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Tail, {"num_rounds": 0}, "num_rounds must be at least 1"),
        (Tail, {"slate_size": 0}, "slate_size must be at least 1"),
        (Tail, {"num_items": 65}, r"65 items, but 8\^2 sids"),
        (Tail, {"num_excluded": 60}, "cannot exclude 60 of 60"),
        (Tail, {"model": {"width": 0}}, "model.width must be at least 1"),
        (Constraint, {**MORE["constraint"], "position": 2}, "position must lie in 1..1"),
        (Constraint, {**MORE["constraint"], "position": 0}, "position must lie in 1..1"),
        (Memory, {**MORE["memory"], "history_lengths": [7]}, "history_lengths must lie in 1..6"),
        (Memory, {**MORE["memory"], "warm_up_runs": 0}, "warm_up_runs must be at least 1"),
        (Throughput, {**MORE["item"], "has_hugging_face": True, "num_excluded": 0}, "knows one item"),
        (Throughput, {**MORE["item"], "has_hugging_face": True, "slate_size": 1}, "knows one item"),
    ],
)
def test_a_problem_that_cannot_be_is_refused(
    kind: type[DecodeWorkload], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind.of(small_values(**changes))


def test_the_work_is_the_same_each_time_and_all_of_it_is_real() -> None:
    small = Tail.of(small_values())
    catalog = small.catalog()
    assert len({tuple(sid) for sid in catalog.sids_NL.tolist()}) == 60
    np.testing.assert_array_equal(catalog.sids_NL, small.catalog().sids_NL)
    left, right = small.generator().state_dict(), small.generator().state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)
    history = small.history(catalog.sids_NL, 3)
    assert history.codes_BTL.shape == (3, 6, 2)
    assert history.lengths_B.tolist() == [6, 6, 6]
    sids = {tuple(sid) for sid in (catalog.sids_NL + 2).tolist()}
    assert {tuple(codes) for codes in history.codes_BTL.flatten(0, 1).tolist()} <= sids
    assert history.ages_BT[0].tolist() == [6 * 3600, 5 * 3600, 4 * 3600, 3 * 3600, 2 * 3600, 3600]
    excluded_BX = small.excluded_rows(60, 3)
    assert excluded_BX.shape == (3, 5)
    assert all(len(set(rows)) == 5 and 0 <= min(rows) <= max(rows) < 60 for rows in excluded_BX.tolist())
    np.testing.assert_array_equal(excluded_BX, small.excluded_rows(60, 3))


def test_an_unknown_workload_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown workload 'items': there are item, slate"):
        command.run(workload="items")


def test_a_run_prints_a_table_and_ends_in_one_line_of_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Fixed(Tail):
        def measure(self, console: Console) -> Measured:
            console.print("measuring")
            row = Row(workload="w", system="s", value=1.5, unit="ms")
            return Measured(rows=[row], ratios={"s over t": 2.0}, caveat="none")

    monkeypatch.setattr(command, "load", lambda name: Fixed.of(small_values()))
    monkeypatch.setattr("loadtests.bench.result.RESULTS_DIR", tmp_path)
    out = io.StringIO()
    result = command.run(workload="tail", console=Console(file=out, width=200))
    line = json.loads(out.getvalue().splitlines()[-1])
    assert line == json.loads(result.json_line())
    assert line.keys() >= {"bench", "commit", "hardware", "rows", "ratios", "date", "command", "caveat"}
    assert (line["bench"], line["ratios"]) == ("decode", {"tail, s over t": 2.0})
    assert not list(tmp_path.iterdir())
