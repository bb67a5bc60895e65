"""Writes a graph from the copies of pieces: equal nodes once, constants in advance, nothing in vain."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from model_export.onnx.shapes import needed_nodes

_FOLDED = frozenset(
    {"Add", "Cast", "Concat", "Exp", "Mul", "Reshape", "Shape", "Sigmoid", "Squeeze", "Sub", "Transpose", "Unsqueeze"}
)
"""Operators that are computed when the graph is written if they read constants alone: none grows what it reads."""


class GraphWriter:
    """Collects nodes and constants; values are names."""

    def __init__(self, opsets: Iterable[onnx.OperatorSetIdProto]) -> None:
        self._opsets = list(opsets)
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: dict[str, npt.NDArray[np.generic]] = {}
        self._name_of_content: dict[tuple[object, ...], str] = {}
        self._outputs_of: dict[tuple[object, ...], list[str]] = {}

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> str:
        """Keeps one copy of equal contents, under the first name that came with it."""
        content = (array.dtype.str, array.shape, sha256(array.tobytes()).digest())
        if content not in self._name_of_content:
            if name in self._arrays:
                name = f"{name}__{len(self._arrays)}"
            self._name_of_content[content] = name
            self._arrays[name] = array
        return self._name_of_content[content]

    def node(self, node: onnx.NodeProto, renamed: Mapping[str, str], prefix: str) -> list[str]:
        """Copies a node, its inputs renamed; returns the names of its outputs.

        A node that does what one before it did is not written again. ONNX Runtime and OpenVINO would find most of
        these, too, at the cost of loading them first.
        """
        inputs = [renamed[name] for name in node.input]
        attributes = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
        work = (node.domain, node.op_type, attributes, tuple(inputs), len(node.output))
        if work not in self._outputs_of:
            if node.op_type in _FOLDED and all(name in self._arrays for name in inputs):
                self._outputs_of[work] = self._folded(node, inputs, prefix)
            else:
                self._outputs_of[work] = self._copied(node, inputs, prefix)
        return self._outputs_of[work]

    def _copied(self, node: onnx.NodeProto, inputs: list[str], prefix: str) -> list[str]:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        copy.ClearField("metadata_props")
        copy.ClearField("doc_string")
        copy.input[:] = inputs
        copy.output[:] = [name and prefix + name for name in node.output]
        self._nodes.append(copy)
        return list(copy.output)

    def _folded(self, node: onnx.NodeProto, inputs: list[str], prefix: str) -> list[str]:
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        alone.input[:] = inputs
        given = {name: self._arrays[name] for name in inputs}
        graph = helper.make_graph(
            [alone],
            "constant",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in given.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output],
        )
        model = helper.make_model(graph, opset_imports=self._opsets)
        found = ReferenceEvaluator(model).run(None, given)
        return [self.constant(prefix + name, np.asarray(array)) for name, array in zip(node.output, found, strict=True)]

    def graph(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Mapping[str, str],
        types: Mapping[str, onnx.ValueInfoProto],
    ) -> onnx.GraphProto:
        """Everything that the outputs need; `outputs`: the value of each by its public name, `types`: what they are."""
        ends = [helper.make_node("Identity", [value], [public], name=public) for public, value in outputs.items()]
        nodes = needed_nodes([*self._nodes, *ends], set(outputs))
        read = {value for node in nodes for value in node.input}
        constants = [numpy_helper.from_array(array, name) for name, array in self._arrays.items() if name in read]
        return helper.make_graph(nodes, name, inputs, [types[public] for public in outputs], constants)
