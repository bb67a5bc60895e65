"""Assembles the exported pieces into graphs from histories to slates.

The driver of the search runs on names instead of tensors: running a piece copies its nodes. Nothing is traced
unrolled, so the time grows with the number of nodes alone. Weights are shared by all copies of a graph.
"""

from hashlib import sha256

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_export.model import Generator
from model_export.search.driver import HISTORY_ROWS, ITEM_EMBEDDINGS, ITEM_REWARDS
from model_export.search.eager import search_parameter
from model_export.search.forced import FORCED_ROWS, NUM_RUNNER_UPS
from model_export.search.graphs import GraphPlan, graph_plans
from model_export.search.sampled import LEVEL_PROPENSITIES
from service.bundle.manifest import Purpose

IR_VERSION = 10
"""The newest that every onnxruntime since 1.20 reads."""

_INPUT_TYPES = {
    "history_codes": (TensorProto.INT32, ("batch", "history", "levels")),
    "history_actions": (TensorProto.INT32, ("batch", "history")),
    "history_ages": (TensorProto.INT32, ("batch", "history")),
    "history_values": (TensorProto.FLOAT, ("batch", "history")),
    "history_lengths": (TensorProto.INT32, ("batch",)),
    "excluded_rows": (TensorProto.INT32, ("batch", "excluded")),
    "filter_slots": (TensorProto.INT32, ("batch",)),
    "allowed_cumsum": (TensorProto.INT32, ("filters", "rows_and_one")),
    "group_limits": (TensorProto.INT32, ("batch",)),
    "cap_slots": (TensorProto.INT32, ("full_groups",)),
    "diversities": (TensorProto.FLOAT, ("batch",)),
    "sids": (TensorProto.INT32, ("rows", "levels")),
    "beam_slots": (TensorProto.INT32, ("beams",)),
    "temperatures": (TensorProto.FLOAT, ("batch",)),
    "seed_words": (TensorProto.INT32, ("batch", "seed_words")),
    HISTORY_ROWS: (TensorProto.INT32, ("batch", "history")),
    FORCED_ROWS: (TensorProto.INT32, ("batch", "slate")),
    ITEM_EMBEDDINGS: (TensorProto.FLOAT, ("rows", "embedding_width")),
}
_OUTPUT_TYPES = {
    "item_rows": (TensorProto.INT32, ("batch", "beams", "slate")),
    "item_valid": (TensorProto.BOOL, ("batch", "beams", "slate")),
    "level_logprobs": (TensorProto.FLOAT, ("batch", "beams", "slate", "levels")),
    "scores": (TensorProto.FLOAT, ("batch", "beams")),
    LEVEL_PROPENSITIES: (TensorProto.FLOAT, ("batch", "beams", "slate", "levels")),
    ITEM_REWARDS: (TensorProto.FLOAT, ("batch", "beams", "slate")),
    "runner_up_codes": (TensorProto.INT32, ("batch", "slate", "levels", "runner_ups")),
    "runner_up_logprobs": (TensorProto.FLOAT, ("batch", "slate", "levels", "runner_ups")),
}


def assemble(
    generator: Generator, pieces: dict[str, onnx.ModelProto], max_branch: tuple[int, ...]
) -> dict[Purpose, onnx.ModelProto]:
    """Writes the graphs of a bundle, by purpose.

    Args:
        generator: Gives the parameters that differ from call to call, and the sizes.
        pieces: From `export_pieces`, of the same generator.
        max_branch: Per level the most children of a node that the graph shall hold.
    """
    plans = graph_plans(generator, has_reward="reward" in pieces)
    return {plan.purpose: _assembled(plan, generator, pieces, max_branch) for plan in plans}


def _assembled(
    plan: GraphPlan, generator: Generator, pieces: dict[str, onnx.ModelProto], max_branch: tuple[int, ...]
) -> onnx.ModelProto:
    writer = _GraphPieces(generator, pieces, max_branch)
    spec = generator.spec
    outputs = plan.run(writer, {name: name for name in plan.inputs})
    dims = {
        "levels": spec.num_levels,
        "slate": spec.slate_size,
        "item_vector_width": generator.config.item_vector_width,
        "runner_ups": NUM_RUNNER_UPS,
    }
    for public in plan.outputs:
        writer.nodes.append(helper.make_node("Identity", [outputs[public]], [public], name=public))
    graph = helper.make_graph(
        _needed(writer.nodes, set(plan.outputs)),
        f"oneslate_{plan.purpose}",
        [_value_info(name, dims) for name in plan.inputs],
        [helper.make_tensor_value_info(name, _OUTPUT_TYPES[name][0], _shape(name, dims)) for name in plan.outputs],
        list(writer.initializers.values()),
    )
    opsets = {entry.domain: entry.version for piece in pieces.values() for entry in piece.opset_import}
    return helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        producer_name="oneslate",
    )


def _needed(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that the wanted values depend on: after its last code nobody reads a beam's suffix any more."""
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _shape(name: str, dims: dict[str, int]) -> list[str | int]:
    return [dims.get(dim, dim) for dim in {**_INPUT_TYPES, **_OUTPUT_TYPES}[name][1]]


def _value_info(name: str, dims: dict[str, int]) -> onnx.ValueInfoProto:
    if name in _INPUT_TYPES:
        return helper.make_tensor_value_info(name, _INPUT_TYPES[name][0], _shape(name, dims))
    if name.startswith("child_vector_"):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"num_{name}", dims["item_vector_width"]])
    return helper.make_tensor_value_info(name, TensorProto.INT32, [f"num_{name}"])  # a trie array


class _GraphPieces:
    """Runs a piece by copying its nodes; values are names."""

    def __init__(self, generator: Generator, pieces: dict[str, onnx.ModelProto], max_branch: tuple[int, ...]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._generator = generator
        self._pieces = pieces
        self._max_branch = max_branch
        self._num_calls: dict[str, int] = {}
        self._name_of_content: dict[tuple[object, ...], str] = {}

    def run(self, piece: str, *values: str) -> tuple[str, ...]:
        graph = self._pieces[piece].graph
        call = self._num_calls.get(piece, 0)
        self._num_calls[piece] = call + 1
        prefix = f"{piece}_{call}/"
        # An input that no node reads is left out of the piece's graph by the exporter never: places must agree.
        assert len(graph.input) == len(values), f"{piece}: {len(graph.input)} inputs, {len(values)} given"
        renamed = {"": ""}
        renamed.update((place.name, value) for place, value in zip(graph.input, values, strict=True))
        renamed.update((tensor.name, self._share(tensor)) for tensor in graph.initializer)
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = prefix + node.name
            copy.ClearField("metadata_props")
            copy.ClearField("doc_string")
            renamed.update((name, prefix + name) for name in node.output if name)
            copy.input[:] = [renamed[name] for name in node.input]
            copy.output[:] = [renamed[name] for name in node.output]
            self.nodes.append(copy)
        return tuple(renamed[place.name] for place in graph.output)

    def parameter(self, name: str, *index: int) -> str:
        tensor = search_parameter(self._generator, self._max_branch, name, *index)
        array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = tensor.detach().cpu().numpy()
        return self._share(numpy_helper.from_array(array, "_".join([name, *map(str, index)])))

    def _share(self, tensor: onnx.TensorProto) -> str:
        """Keeps one copy of equal contents, under the first name that came with it."""
        array = numpy_helper.to_array(tensor)
        content = (array.dtype.str, array.shape, sha256(array.tobytes()).digest())
        if content not in self._name_of_content:
            name = tensor.name if tensor.name not in self.initializers else f"{tensor.name}__{len(self.initializers)}"
            self._name_of_content[content] = name
            copy = numpy_helper.from_array(array, name)
            self.initializers[name] = copy
        return self._name_of_content[content]
