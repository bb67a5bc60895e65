"""Golden cases: the right graph passes, any other is refused with the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported_graphs import Exported, eager
from onnx import numpy_helper
from search_problems import random_problem

from model_export.onnx.parity import golden_cases, margins
from model_export.onnx.weights import save_graphs
from service.bundle import Bundle, BundledCatalog, write_bundle, write_catalog
from service.catalog import CatalogSnapshot
from service.errors import BundleError
from service.inference.golden import GoldenCases, check_golden
from service.inference.ort_runner import OrtRunner

NUM_CASES = 4


@pytest.fixture(scope="module")
def bundle_path(dense: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle; its cases have exclusions, empty histories, missing values."""
    problem = random_problem(np.random.default_rng(4), dense.codebook_sizes, NUM_CASES, 60, longest_history=6)
    problem.allowed_FN[:] = True
    catalog = problem.catalog
    slates = eager(dense, problem, 5)
    assert (margins(slates) > 0.01).any()
    cases = GoldenCases(cases=golden_cases(problem.history, problem.excluded_BX, slates, 5, NUM_CASES))
    path = tmp_path_factory.mktemp("golden") / "bundle"
    write_bundle(
        path,
        dense.fields(),
        {
            "generator.onnx": lambda file: save_graphs(dense.graphs, file.parent),
            "catalog.parquet": lambda file: write_catalog(
                file, BundledCatalog(list(catalog.items), catalog.sids_NL, catalog.popularity_N)
            ),
            "golden.json": lambda file: file.write_text(cases.model_dump_json()),
        },
    )
    return path


def check(path: Path) -> int:
    """Opens the bundle as the service does."""
    bundle = Bundle.open(path)
    bundled = bundle.catalog()
    snapshot = CatalogSnapshot.build(bundled.items, bundled.sids_NL, bundled.num_events_N)
    return check_golden(bundle, OrtRunner(bundle.manifest, bundle.path, num_threads=1), snapshot)


def rewritten(path: Path, target: Path, name: str, write: Callable[[Path], object], **fields: Any) -> Path:
    """A copy of the bundle with another file in it, hashes and all."""
    shutil.copytree(path, target)
    write(target / name)
    manifest = json.loads((target / "manifest.json").read_text())
    del manifest["files"]
    files = {file.name: file.read_bytes() for file in target.iterdir() if file.name != "manifest.json"}
    writers = {name: (lambda file, contents=contents: file.write_bytes(contents)) for name, contents in files.items()}
    write_bundle(target, manifest | fields, writers)
    return target


def test_the_graph_that_was_exported_passes(bundle_path: Path) -> None:
    assert check(bundle_path) == NUM_CASES


@pytest.mark.parametrize("part", ["heads.1.bias", "encoder.embedding.codes.0.weight", "encoder.start_D"])
def test_a_graph_with_other_weights_is_refused(dense: Exported, bundle_path: Path, tmp_path: Path, part: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(dense.model)
    weights = dense.generator.get_parameter(part).detach().numpy()
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    (name,) = [name for name, array in arrays.items() if np.array_equal(array.squeeze(), weights)]
    (tensor,) = [one for one in model.graph.initializer if one.name == name]
    array = arrays[name].copy()
    array.flat[: array.size // 2] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path = rewritten(
        bundle_path, tmp_path / "other", "generator.onnx", lambda file: save_graphs({"generator": model}, file.parent)
    )
    with pytest.raises(BundleError, match=r"golden\.json: case \d+ of 4: (logprobs differ|another slate|score)"):
        check(path)


def edited_cases(bundle_path: Path, target: Path, edit: Callable[[list[dict[str, Any]]], object]) -> Path:
    golden = json.loads((bundle_path / "golden.json").read_text())
    edit(golden["cases"])
    return rewritten(bundle_path, target, "golden.json", lambda file: file.write_text(json.dumps(golden)))


def other_logprob(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        case["level_logprobs"][0][0] -= 0.001


def other_slate(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        case["item_rows"][0] += 1
        case["margin"] = 1.0


def other_score_in_a_near_tie(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        case["item_rows"][0] += 1
        case["margin"] = 0.0
        case["score"] -= 0.1


def unknown_code(cases: list[dict[str, Any]]) -> None:
    cases[0]["history_codes"] = [[99, 99]]
    for field, value in (("history_rows", 0), ("history_actions", 1), ("history_ages", 0), ("history_values", None)):
        cases[0][field] = [value]


def levels_of_another_model(cases: list[dict[str, Any]]) -> None:
    cases[0]["history_codes"] = [[2, 2, 2]]
    cases[0]["level_logprobs"] = [[-1.0, -1.0, -1.0]]
    for field, value in (("history_rows", 0), ("history_actions", 1), ("history_ages", 0), ("history_values", None)):
        cases[0][field] = [value]


def huge_row(cases: list[dict[str, Any]]) -> None:
    cases[0]["excluded_rows"] = [2**40]


def uneven(cases: list[dict[str, Any]]) -> None:
    cases[0]["history_actions"].append(1)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (other_logprob, "logprobs differ by 0.001, 0.0001 is allowed"),
        (other_slate, "another slate, though the best led by 1"),
        (other_score_in_a_near_tie, r"score -[\d.]+ instead of -[\d.]+"),
        (unknown_code, "the graph failed"),
        (levels_of_another_model, "case 0"),
        (huge_row, "case 0"),
        (uneven, "different lengths"),
        (list.clear, "at least 1 item"),
    ],
)
def test_cases_that_the_graph_does_not_keep_are_refused(
    bundle_path: Path, tmp_path: Path, edit: Callable[[list[dict[str, Any]]], object], said: str
) -> None:
    with pytest.raises(BundleError, match=rf"golden\.json: .*{said}") as caught:
        check(edited_cases(bundle_path, tmp_path / "other", edit))
    assert "\n" not in str(caught.value)


def test_a_near_tie_may_fall_either_way(bundle_path: Path, tmp_path: Path) -> None:
    def tie(cases: list[dict[str, Any]]) -> None:
        for case in cases:
            case["item_rows"][0] += 1
            case["margin"] = 0.0005

    assert check(edited_cases(bundle_path, tmp_path / "other", tie)) == NUM_CASES


@pytest.mark.parametrize("text", ["", "[]", '{"cases": 3}', '{"cases": [], "more": 1}'])
def test_a_file_that_holds_no_cases_is_refused(bundle_path: Path, tmp_path: Path, text: str) -> None:
    path = rewritten(bundle_path, tmp_path / "other", "golden.json", lambda file: file.write_text(text))
    with pytest.raises(BundleError, match=r"golden\.json: [a-z]+: "):
        check(path)


def test_a_bundle_without_golden_cases_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    path = rewritten(bundle_path, tmp_path / "other", "golden.json", lambda file: file.unlink())
    with pytest.raises(BundleError, match=r"golden\.json: the manifest does not name it"):
        check(path)


def test_a_weight_file_with_one_flipped_byte_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "other"
    shutil.copytree(bundle_path, path)
    contents = bytearray((path / "weights.data").read_bytes())
    contents[len(contents) // 2] ^= 1
    (path / "weights.data").chmod(0o644)
    (path / "weights.data").write_bytes(contents)
    with pytest.raises(BundleError, match=r"weights\.data: sha256"):
        check(path)
