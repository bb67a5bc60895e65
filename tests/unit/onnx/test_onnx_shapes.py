"""Reshapes whose shapes are made constant do what they did."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from model_export.onnx.shapes import settle_shapes

Dims = list[int | str]


def reshape(before: Dims, after: Dims, parts: list[str | int]) -> onnx.ModelProto:
    """A reshape of x whose shape is computed: the size of an input's dimension, as in `x:0`, or a number."""
    nodes, constants, made = [], [], []
    for place, part in enumerate(parts):
        if isinstance(part, int):
            constants.append(numpy_helper.from_array(np.array([part]), f"part_{place}"))
        else:
            name, dim = part.split(":")
            nodes.append(helper.make_node("Shape", [name], [f"part_{place}"], start=int(dim), end=int(dim) + 1))
        made.append(f"part_{place}")
    nodes.append(helper.make_node("Concat", made, ["shape"], axis=0))
    nodes.append(helper.make_node("Reshape", ["x", "shape"], ["y"], allowzero=1))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, before)]
    inputs.append(helper.make_tensor_value_info("like", TensorProto.FLOAT, ["batch", "more"]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, after)]
    graph = helper.make_graph(nodes, "reshape", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def check(model: onnx.ModelProto, shapes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """Runs the model before and after on inputs of these shapes."""
    settled = onnx.ModelProto()
    settled.CopyFrom(model)
    settle_shapes(settled)
    for x_shape, like_shape in shapes:
        x = np.random.default_rng(0).normal(size=x_shape).astype(np.float32)
        given = {"x": x, "like": np.zeros(like_shape, dtype=np.float32)}
        (expected,), (found,) = (ReferenceEvaluator(one).run(None, given) for one in (model, settled))
        np.testing.assert_array_equal(found, expected)


def test_dimensions_that_stay_are_copied_even_where_they_are_empty() -> None:
    model = reshape(["beams", "codes", 6], ["beams", "codes", 2, 3], ["x:0", "x:1", 2, 3])
    check(model, [((4, 5, 6), (1, 1)), ((4, 0, 6), (1, 1)), ((1, 1, 6), (2, 2))])
    settle_shapes(model)
    assert operators(model) == ["Reshape"]


def test_one_dimension_is_worked_out() -> None:
    model = reshape(["beams", 6], ["beams*2", 3], ["x:0", 3])
    settle_shapes(model)
    assert operators(model) == ["Reshape"]
    given = {"x": np.zeros((4, 6), np.float32), "like": np.zeros((1, 1), np.float32)}
    (found,) = ReferenceEvaluator(model).run(None, given)
    assert found.shape == (8, 3)


def test_of_two_the_simpler_is_still_computed() -> None:
    model = reshape(["beams", 6], ["batch", "beams//batch", 6], ["like:0", "like:1", 6])
    check(model, [((12, 6), (3, 4)), ((5, 6), (1, 5))])
    settle_shapes(model)
    assert operators(model) == ["Shape", "Concat", "Reshape"]
    (shape,) = (node for node in model.graph.node if node.op_type == "Shape")
    assert list(shape.input) == ["like"]
    assert helper.get_node_attr_value(shape, "start") == 0


@pytest.mark.parametrize("after", [["batch", "beams//batch", 0], ["batch", "beams//batch", 6, 0]])
def test_what_is_always_empty_stays_as_it_was(after: Dims) -> None:
    model = reshape(["beams", 0], after, ["like:0", "like:1", *[dim for dim in after[2:] if isinstance(dim, int)]])
    before = model.SerializeToString()
    settle_shapes(model)
    assert model.SerializeToString() == before
