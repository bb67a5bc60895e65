"""Graphs are written without what would be computed twice, every time, or for nothing."""

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from model_export.onnx.writer import GraphWriter

OPSETS = [helper.make_opsetid("", 20)]


def written(writer: GraphWriter, inputs: list[str], outputs: dict[str, str]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in inputs]
    types = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in outputs}
    return helper.make_model(writer.graph("test", infos, outputs, types), opset_imports=OPSETS)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type != "Identity"]


def test_an_equal_node_is_written_once_and_another_is_not_taken_for_it() -> None:
    writer = GraphWriter(OPSETS)
    transposed = [
        writer.node(helper.make_node("Transpose", ["a"], ["b"], perm=perm), {"a": value}, f"{number}/")[0]
        for number, (value, perm) in enumerate([("x", [1, 0]), ("x", [1, 0]), ("y", [1, 0]), ("x", [0, 1])])
    ]
    assert transposed[0] == transposed[1]
    assert len(set(transposed)) == 3
    model = written(writer, ["x", "y"], {f"out_{number}": name for number, name in enumerate(transposed)})
    assert operators(model) == ["Transpose"] * 3


def test_constants_are_computed_in_advance_and_kept_once() -> None:
    writer = GraphWriter(OPSETS)
    weight = writer.constant("weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    assert writer.constant("the same", np.arange(6, dtype=np.float32).reshape(2, 3)) == weight
    assert writer.constant("other type", np.arange(6).reshape(2, 3)) != weight
    (scale,) = (writer.constant("scale", np.array(0.5, dtype=np.float32)),)
    (turned,) = writer.node(helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), {"w": weight}, "a/")
    (scaled,) = writer.node(helper.make_node("Mul", ["t", "s"], ["m"]), {"t": turned, "s": scale}, "b/")
    (product,) = writer.node(helper.make_node("MatMul", ["x", "m"], ["y"]), {"x": "x", "m": scaled}, "c/")
    model = written(writer, ["x"], {"y": product})
    assert operators(model) == ["MatMul"]
    assert [tensor.name for tensor in model.graph.initializer] == ["b/m"]  # what it was made of is not needed
    x = np.ones((1, 3), dtype=np.float32)
    (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(found, x @ np.arange(6, dtype=np.float32).reshape(2, 3).T * np.float32(0.5))


def test_what_no_output_needs_is_left_out() -> None:
    writer = GraphWriter(OPSETS)
    one = writer.constant("one", np.ones((1, 1), dtype=np.float32))
    two = writer.constant("two", np.full((1, 1), 2, dtype=np.float32))
    (kept,) = writer.node(helper.make_node("Add", ["a", "b"], ["c"]), {"a": "x", "b": one}, "kept/")
    writer.node(helper.make_node("Add", ["a", "b"], ["c"]), {"a": kept, "b": two}, "vain/")
    model = written(writer, ["x"], {"y": kept})
    assert operators(model) == ["Add"]
    assert [tensor.name for tensor in model.graph.initializer] == ["one"]
