"""Single runs in the decoder bench: steps with and without the constraint, tails, memory."""

import numpy as np
import pytest
import torch
from rich.console import Console
from small_workload import small_values

from loadtests.bench.decode import child, systems, tail
from loadtests.bench.decode.constraint import Constraint, Steps
from loadtests.bench.decode.memory import Memory
from loadtests.bench.decode.tail import Tail
from loadtests.bench.errors import BenchError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]


def constraint_workload() -> Constraint:
    """A third of all sids, so that the best codes are not all in the catalog."""
    return Constraint.of(small_values(num_items=20, more_codebook_sizes=[], position=1))


def test_a_free_step_finds_everything_that_a_constrained_one_finds_and_more() -> None:
    workload = constraint_workload()
    runs = Steps(workload).systems(4, 2)
    assert set(runs) == {f"{kind}, level {level}" for kind in ("constrained", "unconstrained") for level in (0, 1)}
    for level in (0, 1):
        constrained, free = runs[f"constrained, level {level}"](), runs[f"unconstrained, level {level}"]()
        assert [value.shape for value in constrained] == [value.shape for value in free]  # type: ignore[attr-defined]
        score_BU, free_BU = constrained[0], free[0]  # type: ignore[index]
        assert (np.diff(free_BU, axis=1) <= 0).all()
        assert (free_BU >= score_BU - 1e-4).all()
        assert (free_BU > score_BU + 1e-4).any()
        for grown, expected in zip(constrained[4:], free[4:], strict=True):  # type: ignore[index]
            np.testing.assert_allclose(grown, expected, atol=1e-5)  # the same network


def test_a_free_step_ranks_the_whole_codebook_over_all_beams() -> None:
    workload = constraint_workload()
    steps = Steps(workload)
    score_BW = steps.recorded(4, 2).steps[0][-2].values[1]
    out = steps.systems(4, 2)["unconstrained, level 0"]()
    score_BU, parent_BU, code_BU, logprob_BU = (torch.from_numpy(value) for value in out[:4])  # type: ignore[index]
    assert code_BU.min() >= 0
    assert code_BU.max() < 8
    assert len(set(zip(parent_BU[0].tolist(), code_BU[0].tolist(), strict=True))) == 4
    torch.testing.assert_close(score_BU, score_BW.gather(1, parent_BU) + logprob_BU)


def test_the_cost_of_the_constraint_is_summed_over_the_levels_of_an_item(console: Console) -> None:
    out = constraint_workload().measure(console)
    value = {(row.workload, row.system, row.unit): row.value for row in out.rows}
    assert len(value) == len(out.rows) == 2 * (2 * 2 + 2)
    for shape in ("beam 4, batch 2", "beam 3, batch 1"):
        label = f"small, 8 codes, {shape}"
        total = {kind: value[label, kind, "ms an item"] for kind in ("constrained", "unconstrained")}
        for kind, ms in total.items():
            levels = [value[f"{label}, level {level}", kind, "ms a step"] for level in (0, 1)]
            assert 0 < ms == pytest.approx(sum(levels))
        ratio = out.ratios[f"time, constrained over unconstrained, 8 codes, {shape}"]
        assert ratio == pytest.approx(total["constrained"] / total["unconstrained"])
    assert len(out.ratios) == 2


def test_a_tail_is_held_against_that_of_products_of_the_same_length(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "_SGEMM_SIZE", 32)
    workload = Tail.of(small_values(num_rounds=20, shapes=[[4, 1]]))
    out = workload.measure(console)
    value = {(row.system, row.unit): row.value for row in out.rows}
    engines = systems.engines()
    assert {system for system, _ in value} == {*engines, "sgemm loop"}
    for system in (*engines, "sgemm loop"):
        assert 0 < value[system, "ms p50"] <= value[system, "ms p99"]
        assert value[system, "p99 over p50"] == pytest.approx(value[system, "ms p99"] / value[system, "ms p50"])
    for name in engines:
        expected = value[name, "p99 over p50"] / value["sgemm loop", "p99 over p50"]
        assert out.ratios[f"p99 over p50, {name} over the sgemm loop, beam 4, batch 1"] == pytest.approx(expected)


def test_memory_is_told_by_stage_and_its_growth_is_what_the_runs_added(console: Console) -> None:
    workload = Memory.of(
        small_values(num_rounds=12, shapes=[[4, 1]], warm_up_runs=2, history_lengths=[3, 6], num_threads=1)
    )
    out = workload.measure(console)
    value = {(row.system, row.unit): row.value for row in out.rows}
    before, after = value["process", "MiB before the runs"], value["process", "MiB after 12 runs"]
    assert value["process", "MiB of growth"] == pytest.approx(after - before)
    start = value["process with its libraries", "MiB"]
    more = [value[stage, "MiB more"] for stage in ("weights loaded", "catalog loaded", "runs")]
    assert start + sum(more) == pytest.approx(before)
    assert 20 < start < before <= value["process", "MiB at its peak"] * 1.001
    assert start < 150  # numpy and ONNX Runtime; torch alone would be more
    assert value["weights", "MiB on disk"] > 0.01
    loaded = value["weights loaded", "MiB more"] / value["weights", "MiB on disk"]
    assert out.ratios["memory to load over the weights' file, beam 4, batch 1"] == pytest.approx(loaded)
    growth = out.ratios["growth over 12 runs over what is held, beam 4, batch 1"]
    assert growth == pytest.approx((after - before) / (before - start))


def test_a_child_that_fails_fails_the_bench(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BenchError, match="trie_job ended with exit code 1"):
        child.run_child("loadtests.bench.decode.trie_job", {"sids": "/nowhere.npy", "num_rounds": 1}, num_threads=1)
    assert "/nowhere.npy" in capfd.readouterr().err
