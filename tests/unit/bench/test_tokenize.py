"""The tokenizer bench on a catalog of a few hundred items: what it measures, what it refuses, what it records."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from loadtests.bench import tokenize as bench
from loadtests.bench.errors import BenchError
from loadtests.bench.tokenize_workload import TokenizeWorkload

SMALL = replace(
    TokenizeWorkload.load(), name="small", num_items=(300, 600), width=16, items_per_cluster=20, clusters_per_topic=5
)


def test_every_size_is_measured_for_both_systems() -> None:
    shown = io.StringIO()
    result = bench.run(workload=SMALL, console=Console(file=shown, width=200))
    values = {(row.workload, row.system, row.unit): row.value for row in result.rows}
    workloads = {workload for workload, _, _ in values}
    assert [sum(f"{size} x 16" in name for name in workloads) for size in (300, 600)] == [1, 1]
    for (_, system, unit), value in values.items():
        match unit:
            case "s" | "CPU s" | "squared error" | "MiB peak":
                assert value > 0
            case "collisions" if system == "balanced":
                assert value == 0
            case "items between the largest and the smallest code" if system == "balanced":
                assert value <= 1
    assert 0.9 < result.ratios["plain_error_300"] < 1.5
    assert json.loads(shown.getvalue().splitlines()[-1])["bench"] == "tokenize"


def test_one_size_can_be_asked_for() -> None:
    result = bench.run(num_items=200, workload=SMALL, console=Console(file=io.StringIO()))
    assert {row.workload.split(", ")[1] for row in result.rows} == {"200 x 16"}


def test_a_run_that_breaks_its_promise_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = bench._run_job

    def with_a_collision(path: Path, system: str, workload: TokenizeWorkload) -> dict[str, object]:
        return measured(path, system, workload) | ({"collisions": 1} if system == "balanced" else {})

    monkeypatch.setattr(bench, "_run_job", with_a_collision)
    with pytest.raises(BenchError, match="1 collisions"):
        bench.run(num_items=200, workload=SMALL, console=Console(file=io.StringIO()))


def test_a_job_that_dies_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="balanced ended with exit code 1"):
        bench._run_job(tmp_path / "nothing.npy", "balanced", SMALL)


def test_the_workload_is_the_same_every_time_and_has_what_it_says(tmp_path: Path) -> None:
    for name in ("a", "b"):
        SMALL.write_embeddings(tmp_path / f"{name}.npy", 5000)
    first, again = (np.load(tmp_path / f"{name}.npy") for name in ("a", "b"))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, rtol=1e-5)
    num_repeats = len(first) - len(np.unique(first, axis=0))
    assert 0.01 * len(first) < num_repeats < 0.03 * len(first)
