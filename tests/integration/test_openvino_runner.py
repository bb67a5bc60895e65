"""OpenVINO runs the same graph: the same slates in float32, legal slates near them in bfloat16, refusals otherwise."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported_graphs import BFLOAT16_TOLERANCE, Exported, arrays, as_batch, eager, take_requests
from onnx import helper
from search_problems import Problem, random_problem
from test_graph_batching import mismatches, some_requests
from test_graph_golden import bundle_path, rewritten  # noqa: F401
from test_graph_parity import check

from model_export.onnx.assemble import IR_VERSION
from model_export.onnx.pieces import OPSET, export_module
from model_export.search.choice import Places, Select, SelectRoot
from service.bundle import Bundle
from service.catalog import CatalogSnapshot
from service.errors import BundleError, RunnerError
from service.inference import openvino_runner
from service.inference.golden import check_golden
from service.inference.openvino_runner import OpenVinoRunner, compile_graph, has_bfloat16
from service.inference.runner import DEAD_SCORE, Runner

HAS_BFLOAT16 = has_bfloat16()


@pytest.fixture(params=["mixture", "dense", "vectors", "dense_vectors"])
def exported(request: pytest.FixtureRequest) -> Exported:
    graph: Exported = request.getfixturevalue(request.param)
    return graph


def problems(exported: Exported, count: int, seed: int = 0) -> list[Problem]:
    rng = np.random.default_rng(seed)
    return [
        random_problem(
            rng,
            exported.codebook_sizes,
            num_requests=(1, 2, 5)[number % 3],
            most_items=(1, 6, 30, 70)[number % 4],
            longest_history=(0, 4, 11)[number % 3],
            padding=(0, 3)[number % 2],
            has_caps=number % 4 == 3,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("beam_width", [1, 5, 20])
def test_in_float32_it_decodes_what_the_model_decodes(exported: Exported, beam_width: int) -> None:
    runner = exported.in_openvino()
    assert (runner.provider, runner.precision) == ("OpenVINO", "float32")
    counts: Counter[str] = Counter()
    for problem in problems(exported, 24, seed=beam_width):
        counts += check(exported, problem, beam_width, runner)
    assert counts["decided"] > 0.8 * counts["live"] > 10, counts


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this processor has no bfloat16")
def test_in_bfloat16_slates_are_legal_and_near_the_models(exported: Exported) -> None:
    runner = exported.in_openvino("bfloat16")
    same = compared = 0
    for problem in problems(exported, 48):
        decoded, expected = runner.run(as_batch(problem, 5)), eager(exported, problem, 5)
        # Longer slates first (a cap may cut some short), the longest by score.
        lengths_BW = np.where(decoded.scores_BW > DEAD_SCORE / 2, decoded.item_valid_BWK.sum(2), -1)
        assert (np.diff(lengths_BW, axis=1) <= 0).all()
        assert ((np.diff(decoded.scores_BW, axis=1) <= 0) | (lengths_BW[:, 1:] < lengths_BW[:, :1])).all()
        for request, rows_WK in enumerate(decoded.item_rows_BWK):
            available = set(problem.available(request))
            for rows_K, score in zip(rows_WK.tolist(), decoded.scores_BW[request], strict=True):
                rows = [row for row in rows_K if row >= 0]
                is_capped = bool(problem.limits) and problem.limits[request] > 0
                assert score <= DEAD_SCORE / 2 or is_capped or len(rows) == min(len(rows_K), len(available))
                assert len(set(rows)) == len(rows)
                assert set(rows) <= available
        same_B = (decoded.item_rows_BWK[:, 0] == expected.item_rows_BWK[:, 0].numpy()).all(1)
        difference_B = np.abs(decoded.level_logprobs_BWKL - expected.level_logprobs_BWKL.numpy())[:, 0].max((1, 2))
        assert (difference_B[same_B] < BFLOAT16_TOLERANCE).all()
        same, compared = same + int(same_B.sum()), compared + len(same_B)
    assert same > 0.8 * compared


def test_bfloat16_is_refused_where_there_is_none(dense: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runner, "has_bfloat16", lambda: False)
    with pytest.raises(RunnerError, match="no bfloat16"):
        dense.in_openvino("bfloat16")


def test_a_signal_after_compiled_graphs_are_gone_is_handled(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", value[:1], value[1:])
    opsets = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets), str(tmp_path / "graph.onnx"))
    code = f"""
import signal
from pathlib import Path
from service.inference.openvino_runner import compile_graph, has_bfloat16
has_bfloat16()
graphs = [compile_graph(Path({str(tmp_path / "graph.onnx")!r}), "float32", 1) for _ in range(2)]
del graphs[0]
del graphs[0]
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_every_child_that_is_chosen_belongs_to_its_beam(tmp_path: Path) -> None:
    """Of whatever number of children: where places were divided by it, some came out one too low."""

    def arguments(num_children: int, num_beams: int = 32) -> tuple[torch.Tensor, ...]:
        order = torch.randperm(num_beams * num_children, generator=torch.Generator().manual_seed(num_children))
        total_BWC = order.float().view(1, num_beams, num_children)
        child_BWC = torch.arange(num_beams)[:, None] * 10_000 + torch.arange(num_children)
        none_BW = torch.zeros(1, num_beams)
        beams_U = torch.zeros(num_beams * num_children, dtype=torch.int32)
        parent_I, *behind = Places()(beams_U[:1], torch.zeros(num_beams), torch.zeros(num_children + 1))
        return total_BWC, total_BWC, child_BWC.to(torch.int32)[None], none_BW, none_BW, parent_I, beams_U, *behind

    piece = export_module(Select(), [arguments(3, 4), arguments(5, 6)])
    onnx.save(piece.model, str(tmp_path / "select.onnx"))
    infer_request = compile_graph(tmp_path / "select.onnx", "float32", 1).create_infer_request()
    for num_children in (2, 3, 9, 41, 47, 55, 100, 230, 255, 1_000):
        given = arguments(num_children)
        out = infer_request.infer([value.numpy() for value in given])
        place_BU = given[0].flatten(1).argsort(descending=True).numpy()
        parent_BU, branch_BU = np.divmod(place_BU, num_children)
        np.testing.assert_array_equal(out[1], parent_BU)
        np.testing.assert_array_equal(out[2], parent_BU * 10_000 + branch_BU)


@pytest.mark.parametrize("num_codes", [7, 41, 255, 1_000])
def test_every_code_that_is_chosen_belongs_to_its_beam(num_codes: int, tmp_path: Path) -> None:
    def arguments(num_beams: int, num_chosen: int, num_requests: int) -> tuple[torch.Tensor, ...]:
        draw = torch.Generator().manual_seed(num_beams)
        order = torch.stack([torch.randperm(num_beams * num_codes, generator=draw) for _ in range(num_requests)])
        total_BWV = order.float().view(num_requests, num_beams, num_codes)
        child_V = torch.arange(num_codes, dtype=torch.int32) + 10_000
        none_BW = torch.zeros(num_requests, num_beams)
        node_BW, beams_U = none_BW.to(torch.int32), torch.zeros(num_chosen, dtype=torch.int32)
        parent_I, *_ = Places()(node_BW[:, 0], torch.zeros(num_beams), torch.zeros(num_codes + 1))
        return total_BWV, -total_BWV, child_V, none_BW, none_BW, node_BW, beams_U, parent_I

    piece = export_module(SelectRoot(), [arguments(3, 4, 2), arguments(5, 6, 3)])
    onnx.save(piece.model, str(tmp_path / "select.onnx"))
    infer_request = compile_graph(tmp_path / "select.onnx", "float32", 1).create_infer_request()
    for num_beams, num_chosen in ((1, 5), (5, 20), (32, 64), (128, 256)):
        given = arguments(num_beams, num_chosen, 2)
        out = infer_request.infer([value.numpy() for value in given])
        count = min(num_chosen, num_beams * num_codes)
        place_BU = given[0].flatten(1).argsort(descending=True).numpy()[:, :count]
        parent_BU, code_BU = np.divmod(place_BU, num_codes)
        np.testing.assert_array_equal(out[1][:, :count], parent_BU)
        np.testing.assert_array_equal(out[2][:, :count], code_BU + 10_000)
        np.testing.assert_array_equal(out[3][:, :count], -out[0][:, :count])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_neighbours_change_no_bit(exported: Exported, num_threads: int) -> None:
    runner = exported.in_openvino(num_threads=num_threads)
    for beam_width, batch_size in ((1, 4), (5, 4), (5, 8), (20, 2)):
        problem = some_requests(exported, seed=batch_size)
        changed, compared = mismatches(runner, problem, batch_size, beam_width, seed=beam_width)
        assert compared > 8
        assert changed == 0


def test_an_answer_outlives_the_next_run(dense: Exported) -> None:
    runner, problem = dense.in_openvino(), some_requests(dense, seed=3)
    first = runner.run(as_batch(take_requests(problem, np.array([0])), 5))
    kept = [array.copy() for array in arrays(first)]
    runner.run(as_batch(take_requests(problem, np.array([1])), 5))
    for array, copy in zip(arrays(first), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_what_it_cannot_run_is_refused_with_the_reason(dense: Exported, tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="does not load"):
        OpenVinoRunner(dense.runner.manifest, tmp_path)
    with pytest.raises(RunnerError, match="float32 or bfloat16 here, not in int8"):
        dense.in_openvino("int8")
    batch = as_batch(some_requests(dense, seed=0), 5)
    object.__setattr__(batch, "filter_slots_B", batch.filter_slots_B[:, None])
    with pytest.raises(RunnerError, match="failed on a batch of 12"):
        dense.in_openvino().run(batch)


def test_other_types_than_the_graphs_are_refused_and_never_converted(dense: Exported) -> None:
    batch = as_batch(some_requests(dense, seed=0), 5)
    object.__setattr__(batch, "history_ages_BT", batch.history_ages_BT.astype(np.int64))
    with pytest.raises(RunnerError, match="history_ages is int64, the graph takes int32"):
        dense.in_openvino().run(batch)


def golden(path: Path, runner_of: Any) -> int:
    bundle = Bundle.open(path)
    bundled = bundle.catalog()
    runner: Runner = runner_of(bundle)
    return check_golden(bundle, runner, CatalogSnapshot.build(bundled.items, bundled.sids_NL, bundled.num_events_N))


def test_it_is_held_to_the_golden_cases_with_the_tolerance_of_its_precision(
    bundle_path: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    def engine(precision: Any) -> Any:
        return lambda bundle: OpenVinoRunner(bundle.manifest, bundle.path, precision=precision, num_threads=1)

    assert golden(bundle_path, engine("float32")) == 4
    if not HAS_BFLOAT16:
        return
    assert golden(bundle_path, engine("bfloat16")) == 4
    cases = (bundle_path / "golden.json").read_text()

    def with_tolerances(name: str, **tolerances: float) -> Path:
        field = {precision: {"logprob_abs": value} for precision, value in tolerances.items()}
        write = lambda file: file.write_text(cases)  # noqa: E731
        return rewritten(bundle_path, tmp_path / name, "golden.json", write, golden_tolerance=field)

    with pytest.raises(BundleError, match="was not exported for bfloat16, only for float32"):
        golden(with_tolerances("none", float32=1e-4), engine("bfloat16"))
    with pytest.raises(BundleError, match=r"golden\.json: case \d of 4: .*bfloat16"):
        golden(with_tolerances("tight", float32=1e-4, bfloat16=1e-6), engine("bfloat16"))
