"""The mixture of experts that OpenVINO is taught: the operator's answers, and work for the chosen experts alone."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_export.onnx.assemble import IR_VERSION
from model_export.onnx.pieces import OPSET
from service.inference.openvino_runner import compile_graph

WIDTH, HIDDEN = 8, 12
Arrays = dict[str, npt.NDArray[np.float32]]


def weights_of(num_experts: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {
        "up": (num_experts, HIDDEN, WIDTH),
        "up_bias": (num_experts, HIDDEN),
        "down": (num_experts, WIDTH, HIDDEN),
        "down_bias": (num_experts, WIDTH),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def saved(path: Path, weights: Arrays, num_active: int, activation: str = "relu") -> Path:
    num_experts = len(weights["up"])
    node = helper.make_node(
        "MoE", ["x", "router", *weights], ["y"], domain="com.microsoft", k=num_active, activation_type=activation,
        normalize_routing_weights=1,
    )  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "mixture",
        [value("x", TensorProto.FLOAT, ["N", WIDTH]), value("router", TensorProto.FLOAT, ["N", num_experts])],
        [value("y", TensorProto.FLOAT, ["N", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets), str(path))
    return path


def run_openvino(path: Path, x: Any, router: Any) -> npt.NDArray[np.float32]:
    compiled = compile_graph(path, "float32", 2)
    return np.array(compiled.create_infer_request().infer({"x": x, "router": router})[0])


@pytest.mark.parametrize(("num_experts", "num_active"), [(4, 2), (7, 3), (24, 2), (3, 1), (2, 2)])
def test_it_answers_what_onnx_runtime_answers(tmp_path: Path, num_experts: int, num_active: int) -> None:
    path = saved(tmp_path / "mixture.onnx", weights_of(num_experts), num_active)
    ort_session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    for num_tokens in (1, 2, 5, 64, 301):
        x = rng.standard_normal((num_tokens, WIDTH)).astype(np.float32)
        router = rng.standard_normal((num_tokens, num_experts)).astype(np.float32)
        if num_tokens == 64:
            router[:, 0] += 100  # one has them all, most have none
        [expected] = ort_session.run(None, {"x": x, "router": router})
        np.testing.assert_allclose(run_openvino(path, x, router), expected, rtol=1e-4, atol=1e-4)


def test_an_expert_computes_for_those_who_chose_it_alone(tmp_path: Path) -> None:
    weights = weights_of(6)
    for array in weights.values():
        array[[1, 4]] = np.nan  # whoever met these would be lost, be it with weight zero
    path = saved(tmp_path / "mixture.onnx", weights, 2)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((50, WIDTH)).astype(np.float32)
    router = rng.standard_normal((50, 6)).astype(np.float32)
    router[:, [1, 4]] -= 100
    router[7, 4] += 300
    answer = run_openvino(path, x, router)
    assert np.isnan(answer[7]).all()
    assert np.isfinite(np.delete(answer, 7, axis=0)).all()


def test_another_activation_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "mixture.onnx", weights_of(4), 2, activation="gelu")
    with pytest.raises(RuntimeError, match="mixture of experts with gelu"):
        compile_graph(path, "float32", 1)


def test_steps_share_the_weights_of_their_experts(tmp_path: Path) -> None:
    def num_weights(num_steps: int) -> int:
        weights = weights_of(4)
        steps = [
            helper.make_node(
                "MoE", [f"x{step}", "router", *weights], [f"x{step + 1}"], domain="com.microsoft", k=2,
                activation_type="relu", normalize_routing_weights=1,
            )
            for step in range(num_steps)
        ]  # fmt: skip
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            steps,
            "steps",
            [value("x0", TensorProto.FLOAT, ["N", WIDTH]), value("router", TensorProto.FLOAT, ["N", 4])],
            [value(f"x{num_steps}", TensorProto.FLOAT, ["N", WIDTH])],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        path = tmp_path / f"{num_steps}.onnx"
        onnx.save(helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets), str(path))
        operations = compile_graph(path, "float32", 1).get_runtime_model().get_ops()
        shapes = [
            tuple(one.output(0).get_shape())
            for one in operations
            if one.get_rt_info()["layerType"].astype(str) == "Const"
        ]
        sizes = [int(np.prod(shape)) for shape in shapes]
        return sum(size for size in sizes if size >= WIDTH * HIDDEN)

    assert num_weights(1) == num_weights(5) == 2 * 4 * WIDTH * HIDDEN
