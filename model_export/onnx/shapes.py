"""Makes the shapes that an exported piece computes constant, as far as its symbolic shapes allow.

The exporter writes down every dimension that is not a number as the size of some input, though a reshape needs at most
few: it copies a dimension that stays in its place (0), and works out one by itself (-1). The nodes that computed the
others are not needed then. A search has hundreds of reshapes, and at small batches nodes are what it costs.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

Dim = int | str
"""A size, or the exporter's expression for it."""


def settle_shapes(model: onnx.ModelProto) -> None:
    """Rewrites the shapes of all reshapes in place; nodes that nothing needs any more are dropped."""
    graph = model.graph
    shapes = {value.name: _dims(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes |= {name: list(array.shape) for name, array in constants.items()}
    makers = {output: node for node in graph.node for output in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] not in constants:
            before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
            if before is not None and after is not None:
                nodes += _settle(node, _Shape(before, after), makers.get(node.input[1]), graph)
        nodes.append(node)
    needed = needed_nodes(nodes, {output.name for output in graph.output})
    del graph.node[:]
    graph.node.extend(needed)


@dataclass(frozen=True)
class _Shape:
    """Of one reshape."""

    before: list[Dim]
    after: list[Dim]

    def settled(self) -> list[int | None]:
        """What to ask for in place of each dimension; None: to be worked out."""
        return [
            dim if isinstance(dim, int) else 0 if place < len(self.before) and self.before[place] == dim else None
            for place, dim in enumerate(self.after)
        ]


def _settle(
    node: onnx.NodeProto, shape: _Shape, maker: onnx.NodeProto | None, graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """Gives the reshape a constant shape, or one of fewer parts; returns the nodes that make it."""
    wanted = shape.settled()
    open_places = [place for place, dim in enumerate(wanted) if dim is None]
    if any(dim == 0 and shape.after[place] == 0 for place, dim in enumerate(wanted)):
        return []  # truly empty: 0 would copy
    if len(open_places) > 1:
        # All but the most involved expression stay as they were computed, if they were one by one.
        if maker is None or maker.op_type != "Concat" or len(maker.input) != len(wanted):
            return []
        worked_out = max(open_places, key=lambda place: (len(str(shape.after[place])), place))
    else:
        worked_out = open_places[0] if open_places else -1
    parts: list[str | int] = []
    for place, dim in enumerate(wanted):
        if dim is not None:
            parts.append(dim)
        elif place == worked_out:
            parts.append(-1)
        else:
            assert maker is not None
            parts.append(maker.input[place])
    del node.attribute[:]  # `allowzero`
    name = f"{node.output[0]}/shape"
    if all(isinstance(part, int) for part in parts):
        node.input[1] = _constant(graph, name, [int(part) for part in parts])
        return []
    inputs = [
        part if isinstance(part, str) else _constant(graph, f"{name}_{place}", [part])
        for place, part in enumerate(parts)
    ]
    node.input[1] = name
    return [helper.make_node("Concat", inputs, [name], name=name, axis=0)]


def _constant(graph: onnx.GraphProto, name: str, values: list[int]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    return name


def _dims(value: onnx.ValueInfoProto) -> list[Dim]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def needed_nodes(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that the wanted values depend on: after its last code nobody reads a beam's suffix any more."""
    wanted = set(wanted)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(name for name in node.input if name)
    return kept[::-1]
