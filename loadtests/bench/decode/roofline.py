"""How near ONNX Runtime's run of a graph comes to its own operators, each run alone at its best.

The roofline of a run is the sum of its costly operators' best times, each at the very shapes, on the very inputs and
with the very weights that it has in the run. The rest of the run (operators of a few microseconds, what passes between
operators, weights that left the caches) counts as overhead, so a share is rather too low than too high.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper
from rich.console import Console

from loadtests.bench.decode.graphs import Feeds, in_onnx_runtime
from loadtests.bench.decode.timing import seconds
from loadtests.bench.errors import BenchError
from loadtests.bench.result import Row
from service.inference.ort_runner import CPU_PROVIDER, session_options

MIN_S = 20e-6
"""Operators that take less at their best count as overhead: the profiler reads whole microseconds, and takes some."""
PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MoE"})
"""Operators that execute the network's FLOPs; a mixture those of the experts that were chosen."""
_NUM_PROFILED, _NUM_ALONE = 10, 40


@dataclass
class Operator:
    """All nodes of a graph that do the same work: one kind, attributes, shapes and types."""

    op_type: str
    nodes: list[str] = field(default_factory=list)
    """Names."""
    in_run_s: float = 0.0
    """Of all nodes together, medians over the profiled runs."""
    best_s: float = float("inf")
    """Of one node, in the run or alone."""

    @property
    def roofline_s(self) -> float:
        """Of all nodes together."""
        return self.best_s * len(self.nodes)


class Roofline:
    """One graph on one batch."""

    def __init__(self, graph: Path, feeds: Feeds, *, num_threads: int) -> None:
        """Lets ONNX Runtime optimise the graph, and works on what came out; writes beside `graph`."""
        self._feeds, self._num_threads, self._folder = feeds, num_threads, graph.parent
        self.operators_s = 0.0
        """Of all operators of a profiled run, cheap ones included; known once it is measured."""
        self._ort_session = in_onnx_runtime(graph, num_threads)
        optimized = graph.with_name("optimized.onnx")
        options = self._options(as_it_is=False)
        options.optimized_model_filepath = str(optimized)
        ort.InferenceSession(str(graph), options, providers=[CPU_PROVIDER])
        self._model = onnx.load(str(optimized))
        # Fused nodes come without names, or with one twice.
        for number, node in enumerate(self._model.graph.node):
            node.name = f"node_{number}"
        self._node = {node.name: node for node in self._model.graph.node}
        self._weights = {tensor.name: tensor for tensor in self._model.graph.initializer}

    def measure(self, console: Console | None = None) -> tuple[list[Operator], list[float]]:
        """The costly operators, costliest first, and seconds of whole runs that took turns with them."""
        operators = self._costly()
        inputs = self._inputs_of([operator.nodes[0] for operator in operators])
        whole_s: list[float] = []
        for operator in operators:
            alone_s = self._alone(self._node[operator.nodes[0]], inputs)
            operator.best_s = min(operator.best_s, alone_s)
            whole_s.append(seconds(lambda: self._ort_session.run(None, self._feeds), 0.0))
        if console:
            console.print(f"  {len(operators)} costly operators run alone", highlight=False)
        return operators, whole_s

    def _options(self, *, as_it_is: bool = True, profile: str = "") -> ort.SessionOptions:
        options = session_options(CPU_PROVIDER, self._num_threads)
        if as_it_is:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._folder / profile)
        return options

    def _profiled(self, model: onnx.ModelProto, feeds: Feeds, num_runs: int) -> list[dict[str, Any]]:
        """The profiler's events of all nodes, in all runs."""
        path = self._folder / "profiled.onnx"
        onnx.save(model, str(path), save_as_external_data=True, location="profiled.data", size_threshold=1024)
        ort_session = ort.InferenceSession(str(path), self._options(profile="profile"), providers=[CPU_PROVIDER])
        for _ in range(num_runs):
            ort_session.run(None, feeds)
        profile = Path(ort_session.end_profiling())
        events: list[dict[str, Any]] = json.loads(profile.read_text())
        for file in (profile, path, path.with_name("profiled.data")):
            file.unlink(missing_ok=True)
        return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]

    def _costly(self) -> list[Operator]:
        times_s: dict[str, list[float]] = defaultdict(list)
        shapes: dict[str, str] = {}
        for event in self._profiled(_copy(self._model), self._feeds, _NUM_PROFILED):
            name = event["name"].removesuffix("_kernel_time")
            times_s[name].append(event["dur"] / 1e6)
            shapes[name] = json.dumps(event["args"]["input_type_shape"])
        operators: dict[Any, Operator] = {}
        for name, values in times_s.items():
            if name not in self._node:
                raise BenchError(f"ONNX Runtime ran {name}, which the optimised graph does not hold")
            node = self._node[name]
            attributes = b"".join(sorted(attribute.SerializeToString() for attribute in node.attribute))
            is_weight = tuple(entry in self._weights for entry in node.input)
            operator = operators.setdefault(
                (node.domain, node.op_type, attributes, is_weight, shapes[name]), Operator(node.op_type)
            )
            operator.nodes.append(name)
            # The first run of a session plans and allocates.
            operator.in_run_s += statistics.median(values[1:])
            operator.best_s = min(operator.best_s, *values[1:])
        self.operators_s = sum(operator.in_run_s for operator in operators.values())
        costly = [operator for operator in operators.values() if operator.best_s >= MIN_S]
        return sorted(costly, key=lambda operator: -operator.in_run_s)

    def _inputs_of(self, nodes: Iterable[str]) -> Feeds:
        """What these nodes are given in a run, by name; weights are left out."""
        names = {name for node in nodes for name in self._node[node].input if name and name not in self._weights}
        wanted = sorted(names - self._feeds.keys())
        model = _copy(self._model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        path = self._folder / "captured.onnx"
        onnx.save(model, str(path), save_as_external_data=True, location="captured.data", size_threshold=1024)
        ort_session = ort.InferenceSession(str(path), self._options(), providers=[CPU_PROVIDER])
        captured = dict(zip(wanted, ort_session.run(wanted, self._feeds), strict=True)) if wanted else {}
        for file in (path, path.with_name("captured.data")):
            file.unlink(missing_ok=True)
        return {**{name: self._feeds[name] for name in names & self._feeds.keys()}, **captured}

    def _alone(self, node: onnx.NodeProto, inputs: Feeds) -> float:
        """Best seconds of the node as a graph of its own; its weights stay weights, packed as in the run."""
        given = {name: inputs[name] for name in dict.fromkeys(node.input) if name in inputs}
        graph = helper.make_graph(
            [node],
            "alone",
            [_value_info(name, value) for name, value in given.items()],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
            [self._weights[name] for name in dict.fromkeys(node.input) if name in self._weights],
        )
        model = helper.make_model(graph, ir_version=self._model.ir_version, opset_imports=self._model.opset_import)
        events = self._profiled(model, given, _NUM_ALONE)
        return float(min(event["dur"] for event in events)) / 1e6


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Saving with external data empties the tensors of what is saved."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _value_info(name: str, value: npt.NDArray[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def rows_and_ratios(
    label: str, roofline: Roofline, console: Console | None = None
) -> tuple[list[Row], dict[str, float]]:
    """Measures.

    Returns:
        By kind of product, and of all other costly operators, milliseconds in the run and alone; and the rooflines of
        all costly operators and of the products alone as shares of the median run, and of the best: on a machine that
        others use, best times of parts add up to less than a median of the whole ever can.

    Raises:
        BenchError: no operator is costly; the problem is too small for this.
    """
    operators, whole_s = roofline.measure(console)
    if not operators:
        raise BenchError(f"{label}: no operator takes {MIN_S * 1e6:.0f} microseconds")
    by_type: dict[str, list[Operator]] = defaultdict(list)
    for operator in operators:
        by_type[operator.op_type if operator.op_type in PRODUCTS else "other costly operators"].append(operator)
    rows = []
    for name, same in by_type.items():
        in_run_s, alone_s = sum(one.in_run_s for one in same), sum(one.roofline_s for one in same)
        rows.append(Row(workload=label, system=name, value=in_run_s * 1e3, unit="ms in the profiled run"))
        rows.append(Row(workload=label, system=name, value=alone_s * 1e3, unit="ms alone"))
    median_s, best_s = statistics.median(whole_s), min(whole_s)
    looked_at = sum(operator.in_run_s for operator in operators) / roofline.operators_s
    rows += [
        Row(workload=label, system="whole run", value=median_s * 1e3, unit="ms a batch"),
        Row(workload=label, system="whole run", value=best_s * 1e3, unit="ms a batch at best"),
        Row(workload=label, system="costly operators", value=looked_at, unit="of all operators' time"),
    ]
    every_s = sum(operator.roofline_s for operator in operators)
    products_s = sum(operator.roofline_s for operator in operators if operator.op_type in PRODUCTS)
    rooflines = {"costly operators": every_s, "products": products_s}
    return rows, {
        f"roofline of the {name} over the {run}": value / run_s
        for name, value in rooflines.items()
        for run, run_s in (("median run", median_s), ("best run", best_s))
    }
