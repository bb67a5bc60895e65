"""The decoder bench: its workload, and on a small one the form of what it reports."""

import dataclasses
import io
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from loadtests.bench import decode
from loadtests.bench.decode_workload import CONFIG, DecodeWorkload
from loadtests.bench.errors import BenchError

SMALL = """
name = "small"
num_threads = 1
num_rounds = 2
num_items = 60
codebook_size = 8
num_levels = 2
slate_size = 1
history_length = 6
beam_width = 4
batch_sizes = [2, 1]
seed = 0

[model]
width = 16
num_heads = 2
head_width = 8
encoder_layers = 1
decoder_layers = 1
feed_forward_width = 32
num_experts = 1
num_active_experts = 1
dropout = 0.0
score_mode = "full_softmax"
"""


@pytest.fixture
def small(tmp_path: Path) -> DecodeWorkload:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return DecodeWorkload.load(file)


def test_the_committed_workload_is_the_one_that_is_described() -> None:
    workload = DecodeWorkload.load()
    raw = tomllib.loads(CONFIG.read_text())
    found = json.loads(json.dumps(dataclasses.asdict(workload)))
    assert {**found, "model": None} == {**raw, "model": None}
    assert found["model"] == raw["model"]
    assert workload.num_items <= workload.codebook_size**workload.num_levels
    assert workload.num_rounds >= 5  # medians of at least five


def test_an_unknown_or_missing_key_of_the_workload_is_refused(tmp_path: Path) -> None:
    for text in (SMALL.replace("seed", "sead"), SMALL.replace("seed = 0", ""), SMALL.replace("width", "widht")):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(TypeError):
            DecodeWorkload.load(tmp_path / "bad.toml")


def test_the_work_is_the_same_each_time_and_all_of_it_is_real(small: DecodeWorkload) -> None:
    catalog = small.catalog()
    assert len({tuple(sid) for sid in catalog.sids_NL.tolist()}) == 60
    np.testing.assert_array_equal(catalog.sids_NL, small.catalog().sids_NL)
    left, right = small.generator().state_dict(), small.generator().state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)
    history = small.history(catalog, 3)
    assert history.codes_BTL.shape == (3, 6, 2)
    assert history.lengths_B.tolist() == [6, 6, 6]
    sids = {tuple(sid) for sid in (catalog.sids_NL + 2).tolist()}
    assert {tuple(codes) for codes in history.codes_BTL.flatten(0, 1).tolist()} <= sids
    assert (history.times_BT < history.now_B[:, None]).all()


def test_times_are_medians_of_interleaved_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    script = {"a": iter([5.0, 1.0, 2.0]), "b": iter([30.0, 10.0, 20.0])}
    systems = {name: (lambda name=name: order.append(name) or torch.zeros(1)) for name in script}

    def seconds(call: object) -> float:
        assert callable(call)
        call()
        return next(script[order[-1]])

    monkeypatch.setattr(decode, "_seconds", seconds)
    out = Console(file=io.StringIO())
    assert decode._interleaved(3, systems, out) == {"a": 2.0, "b": 20.0}  # type: ignore[arg-type]
    assert order == ["a", "b", *"ababab"]


def test_systems_that_disagree_are_not_compared() -> None:
    systems = {"graph": lambda: torch.tensor([[1], [2]]), "eager": lambda: torch.tensor([[1], [3]])}
    with pytest.raises(BenchError, match="agree on only 50%"):
        decode._check(systems)


@pytest.mark.slow
def test_a_run_reports_rows_ratios_and_one_line_of_json(
    small: DecodeWorkload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_SGEMM", 128)
    monkeypatch.setattr(decode, "_MIN_WINDOW_S", 0.01)
    monkeypatch.setattr(decode.DecodeWorkload, "load", lambda: small)
    threads, out = torch.get_num_threads(), io.StringIO()
    try:
        result = decode.run(console=Console(file=out, width=150))
    finally:
        torch.set_num_threads(threads)
    assert json.loads(out.getvalue().splitlines()[-1]) == json.loads(result.json_line())
    line = json.loads(result.json_line())
    assert line.keys() >= {"bench", "commit", "hardware", "rows", "ratios", "date", "command", "caveat"}
    assert line["bench"] == "decode"
    value = {(row["workload"], row["system"], row["unit"]): row["value"] for row in line["rows"]}
    assert len(value) == len(line["rows"])
    assert all(one > 0 for one in value.values())
    names = ("graph", "eager", "hf_constrained")
    for batch_size in (2, 1):
        label = f"small, batch {batch_size}"
        assert (label, "sgemm", "GFLOP/s") in value
        assert 0 < value[label, "graph", "share of sgemm"] < 1
        for name in names:
            took_s = value[label, name, "ms a batch"] / 1000
            assert value[label, name, "slates/s"] == pytest.approx(batch_size / took_s)
        for rival in names[1:]:
            expected = value[label, rival, "ms a batch"] / value[label, "graph", "ms a batch"]
            assert line["ratios"][f"{rival}_batch_{batch_size}"] == pytest.approx(expected)
    assert set(line["ratios"]) == {f"{rival}_batch_{size}" for rival in names[1:] for size in (2, 1)}
    assert value["export", "graph", "nodes"] > 100
