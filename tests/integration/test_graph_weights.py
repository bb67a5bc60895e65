"""Several graphs of one bundle keep their large tensors in one file, each once, and every engine reads them there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported_graphs import Exported, as_batch, manifest_fields
from onnx import TensorProto, helper, numpy_helper
from search_problems import random_problem

from model_export.onnx.weights import WEIGHTS_FILE, save_graphs
from service.bundle import Manifest
from service.errors import RunnerError
from service.inference.feeds import graph_feeds
from service.inference.openvino_runner import OpenVinoRunner
from service.inference.ort_runner import OrtRunner

rng = np.random.default_rng(0)
COMMON, OWN = rng.normal(size=(40, 30)).astype(np.float32), rng.normal(size=(40, 30)).astype(np.float32)


def adds(**initializers: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> onnx.ModelProto:
    """x plus all initializers."""
    total, nodes = "x", []
    for number, name in enumerate(initializers):
        nodes.append(helper.make_node("Add", [total, name], [f"y{number}"]))
        total = f"y{number}"
    place = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "adds",
        [place("x", TensorProto.FLOAT, [40, 30])],
        [place(total, TensorProto.FLOAT, [40, 30])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_each_large_tensor_is_stored_once_and_comes_back(tmp_path: Path) -> None:
    small = np.array([3.0], dtype=np.float32)
    graphs = {"generator": adds(a=COMMON, b=OWN, c=small), "explain": adds(another_name=COMMON)}
    (tmp_path / WEIGHTS_FILE).write_bytes(b"left over from before")
    save_graphs(graphs, tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / WEIGHTS_FILE).stat().st_size < COMMON.nbytes + OWN.nbytes + 128
    for purpose, expected in graphs.items():
        bare = onnx.load(tmp_path / f"{purpose}.onnx", load_external_data=False)
        outside = {one.name for one in bare.graph.initializer if one.data_location == TensorProto.EXTERNAL}
        assert outside == {one.name for one in expected.graph.initializer} - {"c"}
        loaded = onnx.load(tmp_path / f"{purpose}.onnx")
        onnx.checker.check_model(loaded)
        for one, wanted in zip(loaded.graph.initializer, expected.graph.initializer, strict=True):
            np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(wanted))


def test_a_second_graph_adds_no_weights_and_every_engine_runs_both(dense: Exported, tmp_path: Path) -> None:
    generator = dense.graphs["generator"]
    save_graphs({"generator": generator}, tmp_path)
    alone = (tmp_path / WEIGHTS_FILE).read_bytes()
    save_graphs({"generator": generator, "explain": generator}, tmp_path)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == alone
    fields = manifest_fields(dense.generator)
    graph = fields["graphs"]["generator"]
    graphs = {"generator": graph, "explain": graph | {"file": "explain.onnx"}}
    files = {"generator.onnx": "draft", "explain.onnx": "draft"}
    manifest = Manifest.model_validate({**fields, "graphs": graphs, "files": files})
    problem = random_problem(np.random.default_rng(1), dense.codebook_sizes, 3, 30, longest_history=4)
    batch = as_batch(problem, 5)
    expected = dense.runner.run(batch)
    batch = replace(batch, purpose="explain")
    for engine in (OrtRunner, OpenVinoRunner):
        runner = engine(manifest, tmp_path, num_threads=1)
        for _ in range(2):  # loaded by the first run, there for the second
            decoded = runner.run(batch)
            np.testing.assert_array_equal(decoded.item_rows_BWK[:, 0], expected.item_rows_BWK[:, 0])
            np.testing.assert_allclose(decoded.scores_BW, expected.scores_BW, atol=1e-4, rtol=1e-6)


def test_a_further_graph_is_loaded_when_it_is_asked_for(dense: Exported, tmp_path: Path) -> None:
    fields = manifest_fields(dense.generator)
    save_graphs({"generator": dense.graphs["generator"]}, tmp_path)
    graph = fields["graphs"]["generator"]
    graphs = {"generator": graph, "explain": graph | {"file": "explain.onnx"}}
    files = {"generator.onnx": "draft", "explain.onnx": "draft"}
    manifest = Manifest.model_validate({**fields, "graphs": graphs, "files": files})
    for engine in (OrtRunner, OpenVinoRunner):
        runner = engine(manifest, tmp_path, num_threads=1)  # although explain.onnx is not there yet
        with pytest.raises(RunnerError, match=r"explain\.onnx: does not load"):
            runner.load("explain")
        runner.load("generator")


def test_a_graph_that_the_bundle_has_not_is_refused(dense: Exported) -> None:
    problem = random_problem(np.random.default_rng(1), dense.codebook_sizes, 1, 30, longest_history=4)
    batch = replace(as_batch(problem, 5), purpose="explain")
    manifest = dense.runner.manifest
    alone = manifest.model_copy(update={"graphs": {"generator": manifest.graphs["generator"]}})
    for runner in (OrtRunner(alone, dense.folder, num_threads=1), OpenVinoRunner(alone, dense.folder, num_threads=1)):
        with pytest.raises(RunnerError, match="no graph 'explain': export the model again"):
            runner.run(batch)


def test_an_input_that_no_batch_brings_is_named(dense: Exported) -> None:
    graph = dense.runner.manifest.graphs["generator"]
    changed = {"generator": graph.model_copy(update={"inputs": (*graph.inputs, "moon_phase")})}
    manifest = dense.runner.manifest.model_copy(update={"graphs": changed})
    batch = as_batch(random_problem(np.random.default_rng(1), dense.codebook_sizes, 1, 30, longest_history=4), 5)
    with pytest.raises(RunnerError, match="takes moon_phase"):
        graph_feeds(manifest, batch)
