"""Throughput of the decoder: how clocks are read, what is counted, and the form of what is reported."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from small_workload import small_values
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from loadtests.bench.decode import roofline, systems, throughput, timing
from loadtests.bench.decode.flops import useful_flops
from loadtests.bench.decode.systems import ONNX_RUNTIME, Eager
from loadtests.bench.decode.tail import Tail
from loadtests.bench.decode.throughput import Throughput
from loadtests.bench.errors import BenchError

EXPERTS = {"num_experts": 6, "num_active_experts": 2}


def test_readings_are_of_interleaved_rounds_and_short_calls_settle_before(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    script = {"a": iter([5.0, 0.5, 2.0]), "b": iter([30.0, 10.0, 20.0])}

    def seconds(call: Any, window_s: float) -> float:
        call()
        return next(script[order[-1]])

    monkeypatch.setattr(timing, "seconds", seconds)
    readings = timing.interleaved(3, {name: (lambda name=name: order.append(name)) for name in script})  # type: ignore[misc]
    assert readings == {"a": [5.0, 0.5, 2.0], "b": [30.0, 10.0, 20.0]}
    assert timing.medians(readings) == {"a": 2.0, "b": 20.0}
    assert order == ["a", "b", *"aabb", *"ab", *"aab"]


def test_a_reading_is_a_mean_over_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    calls: list[int] = []
    assert timing.seconds(lambda: calls.append(1), 3.0) == 1.0
    assert len(calls) == 3
    assert timing.seconds(lambda: calls.append(1), 0.0) == 1.0
    assert len(calls) == 4


def test_the_rate_of_products_is_counted_from_their_size() -> None:
    size = timing.SGEMM_SIZES[0]
    assert timing.sgemm_rates({f"sgemm {size}": [2.0, 1.0], "eager": [1.0]}) == {
        f"sgemm {size}": [size**3, 2 * size**3]
    }


@pytest.mark.parametrize(
    "model", [{}, {"decoder_layers": 2, "num_heads": 3}, EXPERTS, {**EXPERTS, "encoder_layers": 0}]
)
@pytest.mark.parametrize(("slate_size", "beam_width", "batch_size"), [(1, 3, 2), (2, 4, 1)])
def test_useful_flops_are_the_products_that_the_eager_search_runs(
    model: dict[str, int], slate_size: int, beam_width: int, batch_size: int
) -> None:
    workload = Tail.of(small_values(model=model, slate_size=slate_size))
    eager = Eager(workload, workload.generator(), workload.catalog()).decoder(beam_width, batch_size)
    # The other kernels of attention are not counted by PyTorch.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        eager()
    # Attention among a beam's own codes sums over its heads by products with ones: work that no one needs.
    shape = workload.model
    sums = 2 * shape.decoder_layers * shape.num_heads**2 * shape.head_width * batch_size
    places = range(1, slate_size * workload.spec.num_levels + 1)
    sums *= sum(place * (beam_width if place > 1 else 1) for place in places)
    flops = useful_flops(workload.model, workload.spec, batch_size=batch_size, beam_width=beam_width, history_length=6)
    assert flops == counter.get_total_flops() - sums


def test_of_a_mixture_only_the_active_experts_count() -> None:
    def flops(**model: int) -> int:
        workload = Tail.of(small_values(model=model))
        return useful_flops(workload.model, workload.spec, batch_size=1, beam_width=4, history_length=6)

    router = 2 * 16 * (1 + 3 * 4)  # one more column for each of a slate's 13 tokens
    assert flops(num_experts=7, num_active_experts=2) - flops(num_experts=6, num_active_experts=2) == router
    expert = 2 * 2 * 16 * 32 * 13
    assert flops(num_experts=6, num_active_experts=3) - flops(num_experts=6, num_active_experts=2) == expert


@pytest.mark.parametrize(("num_slates", "num_ties"), [(1, 1), (8, 2), (20, 4)])
def test_systems_that_disagree_are_not_compared(num_slates: int, num_ties: int) -> None:
    def system(num_others: int) -> systems.Decoder:
        return lambda: (torch.arange(num_slates) < num_others).long().unsqueeze(1)

    for name in systems.FLOAT32:
        assert throughput.agreement({name: system(num_ties)}, system(0)) == {name: 1 - num_ties / num_slates}
        if num_ties < num_slates:
            with pytest.raises(BenchError, match=f"{name} and the eager model agree on only"):
                throughput.agreement({name: system(num_ties + 1)}, system(0))
    # what lower precision costs is reported
    assert throughput.agreement({"openvino bfloat16": system(num_slates)}, system(0)) == {"openvino bfloat16": 0.0}


def measured(
    console: Console, **changes: Any
) -> tuple[dict[tuple[str, str, str], float], dict[str, float], Throughput]:
    workload = Throughput.of(small_values(**{"has_hugging_face": False, "roofline_shapes": [], **changes}))
    out = workload.measure(console)
    values = {(row.workload, row.system, row.unit): row.value for row in out.rows}
    assert len(values) == len(out.rows)
    return values, out.ratios, workload


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "changes", [{"has_hugging_face": True, "slate_size": 1, "num_excluded": 0}, {"model": EXPERTS}]
)
def test_rows_and_ratios_of_each_shape_follow_from_the_times(console: Console, changes: dict[str, Any]) -> None:
    value, ratios, workload = measured(console, **changes)
    ours = systems.engines()
    rivals = ("eager", "hf_constrained") if workload.has_hugging_face else ("eager",)
    assert ours[0] == ONNX_RUNTIME
    best = {value[f"small, {shape}", "sgemm", "GFLOP/s at best"] for shape in ("beam 4, batch 2", "beam 3, batch 1")}
    assert len(best) == 1  # of the whole run
    for beam_width, batch_size in workload.shapes:
        shape = f"beam {beam_width}, batch {batch_size}"
        label = f"small, {shape}"
        assert 0 < value[label, "sgemm", "GFLOP/s"] <= max(best)
        flops = value[label, "network", "useful GFLOP a batch"]
        for name in (*ours, *rivals):
            took_s = value[label, name, "ms a batch"] / 1000
            assert value[label, name, "slates/s"] == pytest.approx(batch_size / took_s)
        for name in ours:
            rate = flops / (value[label, name, "ms a batch"] / 1000)
            assert value[label, name, "of sgemm at best"] == pytest.approx(rate / max(best))
            assert value[label, name, "of sgemm, useful FLOPs"] == pytest.approx(
                rate / value[label, "sgemm", "GFLOP/s"]
            )
            for rival in (*rivals, *({ONNX_RUNTIME} - {name})):
                expected = value[label, rival, "ms a batch"] / value[label, name, "ms a batch"]
                assert ratios[f"{name} over {rival}, {shape}"] == pytest.approx(expected)
        assert value[label, ONNX_RUNTIME, "of best slates as eager"] == 1
    assert len(ratios) == 2 * (len(ours) * len(rivals) + len(ours) - 1)
    assert value["small, export", "graph", "nodes"] > 100
    assert value["small, export", "graph", "s to export this graph alone"] > 0
    assert all(value["small, export", name, "s to load"] > 0 for name in ours)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_without_shapes_only_the_graph_is_measured(console: Console) -> None:
    value, ratios, _ = measured(console, shapes=[], model=EXPERTS)
    assert {label for label, _, _ in value} == {"small, export"}
    assert not ratios


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_roofline_sums_the_best_times_of_operators_run_alone(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "MIN_S", 0.0)
    seen: list[tuple[list[roofline.Operator], list[float]]] = []
    measure = roofline.Roofline.measure
    monkeypatch.setattr(
        roofline.Roofline,
        "measure",
        lambda *args: seen.append(measure(*args)) or seen[-1],  # type: ignore[func-returns-value]
    )
    value, ratios, workload = measured(console, shapes=[], roofline_shapes=[[4, 2]], model=EXPERTS)
    ((operators, whole_s),) = seen
    assert len(whole_s) == len(operators)  # they took turns
    mixtures = [operator for operator in operators if operator.op_type == "MoE"]
    # One mixture a step: one token in the first, beams x batch in the others; the spare tokens come on top.
    assert sum(len(operator.nodes) for operator in mixtures) == 4
    assert all(0 < operator.best_s * len(operator.nodes) <= operator.in_run_s * 1.001 for operator in mixtures)
    label, whole = "small, beam 4, batch 2, operators", float(np.median(whole_s))
    products = sum(o.best_s * len(o.nodes) for o in operators if o.op_type in roofline.PRODUCTS)
    assert ratios["roofline of the products over the median run, beam 4, batch 2"] == pytest.approx(products / whole)
    best = ratios["roofline of the products over the best run, beam 4, batch 2"]
    assert best == pytest.approx(products / min(whole_s))
    every = sum(operator.best_s * len(operator.nodes) for operator in operators)
    assert ratios["roofline of the costly operators over the median run, beam 4, batch 2"] == pytest.approx(
        every / whole
    )
    assert value[label, "whole run", "ms a batch"] == pytest.approx(whole * 1000)
    assert value[label, "MoE", "ms alone"] == pytest.approx(sum(o.roofline_s for o in mixtures) * 1000)
    assert value[label, "costly operators", "of all operators' time"] == pytest.approx(1)
    assert value[label, "MoE", "ms in the profiled run"] > 0

    monkeypatch.setattr(roofline, "MIN_S", 1e3)
    with pytest.raises(BenchError, match="no operator takes"):
        workload.measure(console)
