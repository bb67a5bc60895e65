"""Assembles the exported pieces into graphs from histories to slates.

The driver of the search runs on names instead of tensors: running a piece copies its nodes. Nothing is traced
unrolled, so the time grows with the number of nodes alone. Weights are shared by all copies of a graph.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from model_export.model.generator import Generator
from model_export.onnx.pieces import ExportedPiece, weights_of
from model_export.onnx.writer import GraphWriter
from model_export.search.driver import HISTORY_ROWS, ITEM_EMBEDDINGS, ITEM_REWARDS
from model_export.search.eager import search_parameter
from model_export.search.forced import FORCED_ROWS, NUM_RUNNER_UPS
from model_export.search.graphs import PURPOSES, GraphPlan, graph_plans
from model_export.search.pieces import Modules, make_pieces
from model_export.search.sampled import LEVEL_PROPENSITIES
from service.bundle.manifest import Purpose

if TYPE_CHECKING:
    from model_export.reward.graph import RewardGraph

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
    generator: Generator,
    pieces: Mapping[str, ExportedPiece],
    max_branch: tuple[int, ...],
    reward: "RewardGraph | None" = None,
    purposes: Collection[Purpose] = PURPOSES,
) -> dict[Purpose, onnx.ModelProto]:
    """Writes the graphs of a bundle, by purpose.

    Args:
        generator: Gives the weights and the sizes.
        pieces: From `export_pieces`, of a generator and reward model of the same configuration.
        max_branch: Per level the most children of a node that the graph shall hold.
        reward: Where slates shall have rewards.
        purposes: The graphs wanted.
    """
    modules = make_pieces(generator, reward)
    return {
        plan.purpose: _assembled(plan, generator, NamedPieces(generator, modules, pieces, max_branch))
        for plan in graph_plans(generator, has_reward=reward is not None, purposes=purposes)
    }


def _assembled(plan: GraphPlan, generator: Generator, pieces: "NamedPieces") -> onnx.ModelProto:
    spec = generator.spec
    outputs = plan.run(pieces, {name: name for name in plan.inputs})
    dims = {
        "levels": spec.num_levels,
        "slate": spec.slate_size,
        "item_vector_width": generator.config.item_vector_width,
        "runner_ups": NUM_RUNNER_UPS,
    }
    types = {
        name: helper.make_tensor_value_info(name, _OUTPUT_TYPES[name][0], _shape(name, dims)) for name in plan.outputs
    }
    return pieces.model(
        f"oneslate_{plan.purpose}",
        [_value_info(name, dims) for name in plan.inputs],
        {public: outputs[public] for public in plan.outputs},
        types,
    )


def _shape(name: str, dims: dict[str, int]) -> list[str | int]:
    return [dims.get(dim, dim) for dim in {**_INPUT_TYPES, **_OUTPUT_TYPES}[name][1]]


def _value_info(name: str, dims: dict[str, int]) -> onnx.ValueInfoProto:
    if name in _INPUT_TYPES:
        return helper.make_tensor_value_info(name, _INPUT_TYPES[name][0], _shape(name, dims))
    if name.startswith("child_vector_"):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"num_{name}", dims["item_vector_width"]])
    return helper.make_tensor_value_info(name, TensorProto.INT32, [f"num_{name}"])  # a trie array


class NamedPieces:
    """Runs a piece by copying its nodes; values are names."""

    def __init__(
        self,
        generator: Generator,
        modules: Modules,
        pieces: Mapping[str, ExportedPiece],
        max_branch: tuple[int, ...],
    ) -> None:
        self._generator = generator
        self._modules = modules
        self._pieces = pieces
        self._max_branch = max_branch
        opsets = {entry.domain: entry for piece in pieces.values() for entry in piece.model.opset_import}
        self._opsets = list(opsets.values())
        self._writer = GraphWriter(self._opsets)
        self._num_calls: dict[str, int] = {}

    def run(self, piece: str, *values: str, of: int = 0) -> tuple[str, ...]:
        """Runs one piece."""
        exported = self._pieces[piece]
        graph = exported.model.graph
        call = self._num_calls.get(piece, 0)
        self._num_calls[piece] = call + 1
        assert len(graph.input) == len(values) + len(exported.weights), f"{piece}: {len(values)} values given"
        given, taken = graph.input[: len(values)], graph.input[len(values) :]
        renamed = {"": ""}
        renamed.update((place.name, value) for place, value in zip(given, values, strict=True))
        # A module brings weights that its piece does not read, as those of all items.
        read = {name for node in graph.node for name in node.input}
        weights = weights_of(self._modules[piece][of])
        for place, name in zip(taken, exported.weights, strict=True):
            if place.name in read:
                renamed[place.name] = self.constant(f"{piece}.{of}.{name}", weights[name])
        for tensor in graph.initializer:
            if tensor.name in read:
                renamed[tensor.name] = self._writer.constant(tensor.name, numpy_helper.to_array(tensor))
        for node in graph.node:
            outputs = self._writer.node(node, renamed, f"{piece}_{call}/")
            renamed.update((name, output) for name, output in zip(node.output, outputs, strict=True) if name)
        return tuple(renamed[place.name] for place in graph.output)

    def parameter(self, name: str, *index: int) -> str:
        """See `Pieces.parameter`."""
        tensor = search_parameter(self._generator, self._max_branch, name, *index)
        return self.constant("_".join([name, *map(str, index)]), tensor)

    def constant(self, name: str, tensor: Tensor) -> str:
        """A weight of the graph."""
        return self._writer.constant(name, tensor.detach().cpu().numpy())

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Mapping[str, str],
        types: Mapping[str, onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """What has been run, as a graph; the arguments are `GraphWriter.graph`'s."""
        return helper.make_model(
            self._writer.graph(name, inputs, outputs, types),
            ir_version=IR_VERSION,
            opset_imports=self._opsets,
            producer_name="oneslate",
        )
