"""The bundle: what is written comes back, and what was touched is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundle_kit import bundle_catalog, bundle_fields, write_graph, write_small_bundle
from pydantic import ValidationError

from service.bundle import Bundle, Manifest, write_bundle, write_catalog
from service.bundle.manifest import manifest_digest
from service.bundle.reader import file_sha256
from service.bundle.writer import write_json
from service.errors import BundleError

FILES = ("MODEL_CARD.md", "catalog.parquet", "generator.onnx", "golden.json", "weights.data")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "bundles" / "tiny"
    write_small_bundle(target)
    return target


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    edit(manifest)
    manifest["manifest_sha256"] = manifest_digest(manifest)  # so that the edit itself is what is refused
    file.write_text(json.dumps(manifest))


def test_what_is_written_comes_back(path: Path) -> None:
    bundle = Bundle.open(path)
    determined = {"files": bundle.manifest.files, "manifest_sha256": bundle.manifest.manifest_sha256}
    assert bundle.manifest == Manifest.model_validate(bundle_fields() | determined)
    assert sorted(bundle.manifest.files) == sorted(FILES)
    assert bundle.manifest.action_numbers == {"view": 1, "like": 2}
    catalog, written = bundle.catalog(), bundle_catalog()
    assert catalog.items == written.items
    np.testing.assert_array_equal(catalog.sids_NL, written.sids_NL)
    np.testing.assert_array_equal(catalog.num_events_N, written.num_events_N)
    assert catalog.sids_NL.dtype == np.int32


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_refused_with_the_files_name(path: Path, name: str) -> None:
    contents = (path / name).read_bytes()
    places = sorted({0, len(contents) - 1, *np.random.default_rng(0).integers(0, len(contents), 25).tolist()})
    for place in places:
        damaged = bytearray(contents)
        damaged[place] ^= 1 << (place % 8)
        (path / name).write_bytes(damaged)
        with pytest.raises(BundleError, match=name):
            Bundle.open(path)
    for damaged in (contents + b"\0", contents[:-1]):
        (path / name).write_bytes(damaged)
        with pytest.raises(BundleError, match=name):
            Bundle.open(path)
    (path / name).write_bytes(contents)
    Bundle.open(path)


def test_any_flipped_bit_of_the_manifest_is_refused_in_one_line_unless_it_is_spacing(path: Path) -> None:
    file = path / "manifest.json"
    contents = file.read_bytes()
    intended = json.loads(contents)
    num_refused = 0
    for place in range(0, len(contents), 3):
        damaged = bytearray(contents)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        try:
            Bundle.open(path)
        except BundleError as error:
            num_refused += 1
            if str(path) not in str(error) or "\n" in str(error):
                pytest.fail(f"not one line that names the bundle: {str(error)!r}")
        else:
            assert json.loads(damaged) == intended
    assert num_refused > 100


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: missing"):
        Bundle.open(path)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None])
def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "nothing")
    with pytest.raises(BundleError, match="no bundle here"):
        Bundle.open(tmp_path / "nothing")


def test_a_manifest_that_is_a_folder_is_refused(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        Bundle.open(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ufeff{}", '{"a": 1e999}', "NaN"])
def test_a_manifest_that_is_none_is_refused(path: Path, text: str) -> None:
    (path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "sub/file", "..", ".", "", "a\0b"])
def test_a_name_that_leaves_the_bundle_is_refused(path: Path, name: str) -> None:
    outside = path.parent / "outside.txt"
    outside.write_text("secret")
    (path / "sub").mkdir()
    (path / "sub" / "file").write_text("secret")
    edit_manifest(path, lambda manifest: manifest["files"].update({name: file_sha256(outside)}))
    with pytest.raises(BundleError):
        Bundle.open(path)


BAD_FIELDS: list[tuple[str, Any, str]] = [
    ("format_version", 3, "format_version is 3, this version reads 4: export the model again"),
    ("format_version", 5, "format_version is 5, this version reads 4: a newer OneSlate wrote it"),
    ("format_version", "4", "format_version is '4', this version reads 4"),
    ("model_version", "../evil", "model_version"),
    ("model_version", "", "model_version"),
    ("num_levels", 3, "codebook_sizes"),
    ("num_levels", 0, "num_levels"),
    ("codebook_sizes", [4, 0], "codebook_sizes"),
    ("max_branch", [4], "max_branch"),
    ("beam_width", 21, "beam_width"),
    ("slate_size", 0, "slate_size"),
    ("history_length", 0, "history_length"),
    ("score_mode", "softmax", "score_mode"),
    ("actions", [], "actions"),
    ("actions", [{"name": "view"}, {"name": "view"}], "actions"),
    ("default_action", "buy", "default_action"),
    ("graphs", {}, "generator"),
    ("golden_tolerance", {}, "float32"),
    ("golden_tolerance", {"float32": {"logprob_abs": 0}}, "logprob_abs"),
    ("surprise", 1, "surprise"),
    ("files", {}, r"generator\.onnx"),
]


@pytest.mark.parametrize(("field", "value", "said"), BAD_FIELDS)
def test_another_schema_is_refused_by_field(path: Path, field: str, value: object, said: str) -> None:
    edit_manifest(path, lambda manifest: manifest.update({field: value}))
    with pytest.raises(BundleError, match=said) as caught:
        Bundle.open(path)
    assert "manifest.json" in str(caught.value)


@pytest.mark.parametrize("field", sorted(bundle_fields()))
def test_a_missing_field_is_refused_by_name(path: Path, field: str) -> None:
    edit_manifest(path, lambda manifest: manifest.pop(field))
    with pytest.raises(BundleError, match=field):
        Bundle.open(path)


def rewrite(path: Path, name: str, contents: bytes) -> None:
    """Puts another file in place, with a hash that vouches for it."""
    (path / name).write_bytes(contents)
    edit_manifest(path, lambda manifest: manifest["files"].update({name: file_sha256(path / name)}))


def table_bytes(path: Path, table: pa.Table) -> bytes:
    pq.write_table(table, path)
    return path.read_bytes()


def test_a_catalog_that_lacks_a_column_is_refused(path: Path, tmp_path: Path) -> None:
    table = pq.read_table(path / "catalog.parquet").drop_columns(["tags", "sid"])
    rewrite(path, "catalog.parquet", table_bytes(tmp_path / "table", table))
    with pytest.raises(BundleError, match=r"catalog\.parquet: lacks the column\(s\) tags, sid"):
        Bundle.open(path).catalog()


def test_a_catalog_with_sids_of_another_length_is_refused(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest.update(num_levels=3, codebook_sizes=[4, 3, 3], max_branch=[4, 3, 3]))
    with pytest.raises(BundleError, match=r"catalog\.parquet: a sid has not 3 levels"):
        Bundle.open(path).catalog()


@pytest.mark.parametrize("contents", [b"", b"PAR1", b"nonsense" * 100])
def test_a_catalog_that_is_no_table_is_refused(path: Path, contents: bytes) -> None:
    rewrite(path, "catalog.parquet", contents)
    with pytest.raises(BundleError, match=r"catalog\.parquet"):
        Bundle.open(path).catalog()


@pytest.mark.parametrize("column", ["tags", "sid"])
def test_a_catalog_with_an_empty_place_in_a_list_is_refused(path: Path, tmp_path: Path, column: str) -> None:
    table = pq.read_table(path / "catalog.parquet")
    cells = table.column(column).to_pylist()
    cells[0][0] = None
    rewrite(path, "catalog.parquet", table_bytes(tmp_path / "table", replaced(table, column, cells)))
    with pytest.raises(BundleError, match=rf"catalog\.parquet: .*{column}"):
        Bundle.open(path).catalog()


def test_a_catalog_with_a_column_of_another_type_is_refused(path: Path, tmp_path: Path) -> None:
    table = pq.read_table(path / "catalog.parquet")
    place = table.column_names.index("sid")
    table = table.set_column(place, "sid", pa.array([["x"], ["y"], ["z"]]))
    rewrite(path, "catalog.parquet", table_bytes(tmp_path / "table", table))
    with pytest.raises(BundleError, match=r"catalog\.parquet: cannot be read"):
        Bundle.open(path).catalog()


def replaced(table: pa.Table, column: str, cells: list[Any]) -> pa.Table:
    place = table.column_names.index(column)
    return table.set_column(place, column, pa.array(cells, table.column(column).type))


@pytest.mark.parametrize("column", ["item_id", "tags", "sid", "num_events"])
def test_a_catalog_with_an_empty_cell_is_refused(path: Path, tmp_path: Path, column: str) -> None:
    table = pq.read_table(path / "catalog.parquet")
    cells = table.column(column).to_pylist()
    cells[1] = None
    rewrite(path, "catalog.parquet", table_bytes(tmp_path / "table", replaced(table, column, cells)))
    with pytest.raises(BundleError, match=rf"catalog\.parquet: .*{column}"):
        Bundle.open(path).catalog()


def test_a_catalog_that_the_manifest_does_not_vouch_for_is_refused(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest["files"].pop("catalog.parquet"))
    with pytest.raises(BundleError, match=r"catalog\.parquet"):
        Bundle.open(path).catalog()


def broken_writer(path: Path) -> None:
    path.write_text("half of")
    raise OSError("no space left")


def test_a_writer_that_fails_leaves_the_old_bundle_in_place(path: Path) -> None:
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(OSError, match="no space left"):
        write_bundle(path, bundle_fields(), {"generator.onnx": write_graph, "golden.json": broken_writer})
    with pytest.raises(ValidationError):
        write_bundle(path, bundle_fields(beam_width=99), {"generator.onnx": write_graph})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    Bundle.open(path)


def test_a_new_bundle_replaces_the_old_one_wholly(path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):  # and what a failed attempt left behind is not in the way
        write_bundle(path, bundle_fields(), {"leftover.bin": broken_writer})
    write_bundle(path, bundle_fields(model_version="tiny-2"), {"generator.onnx": write_graph})
    assert Bundle.open(path).manifest.model_version == "tiny-2"
    assert sorted(file.name for file in path.iterdir()) == ["generator.onnx", "manifest.json", "weights.data"]
    assert [file.name for file in path.parent.iterdir()] == ["tiny"]


def test_an_old_bundle_that_could_not_be_removed_is_no_obstacle(path: Path) -> None:
    shutil.copytree(path, path.with_name(".tiny.old"))
    write_small_bundle(path, model_version="tiny-2")
    assert Bundle.open(path).manifest.model_version == "tiny-2"


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_json(file, {"b": 1, "a": [1]})
    assert json.loads(file.read_text()) == {"a": [1], "b": 1}
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": [1], "b": 1}


def test_an_empty_catalog_is_written_and_read(path: Path, tmp_path: Path) -> None:
    catalog = bundle_catalog()
    empty = type(catalog)([], catalog.sids_NL[:0], catalog.num_events_N[:0])
    write_catalog(tmp_path / "empty.parquet", empty)
    rewrite(path, "catalog.parquet", (tmp_path / "empty.parquet").read_bytes())
    assert Bundle.open(path).catalog().sids_NL.shape == (0, 2)


def write_with_vectors(target: Path, **arrays: np.ndarray[Any, Any]) -> Bundle:
    """A small bundle whose manifest promises item vectors of width 3."""
    catalog = bundle_catalog()
    writers = {
        "generator.onnx": write_graph,
        "catalog.parquet": lambda file: write_catalog(file, catalog),
        "item_vectors.npz": lambda file: np.savez(file, **arrays),
    }
    write_bundle(target, bundle_fields() | {"item_vector_width": 3}, writers)
    return Bundle.open(target)


def test_item_vectors_come_back(tmp_path: Path) -> None:
    vectors_ND = np.random.default_rng(0).normal(size=(len(bundle_catalog().items), 3)).astype(np.float32)
    found = write_with_vectors(tmp_path / "tiny", vectors_ND=vectors_ND).catalog().vectors_ND
    assert found is not None
    np.testing.assert_array_equal(found, vectors_ND)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"vectors_ND": np.zeros((1, 3), dtype=np.float32)}, r"holds float32 \(1, 3\), but"),
        ({"vectors_ND": np.zeros((len(bundle_catalog().items), 4), dtype=np.float32)}, r"4\), but"),
        ({"vectors_ND": np.zeros((len(bundle_catalog().items), 3))}, "holds float64"),
        ({"others_ND": np.zeros((1, 3), dtype=np.float32)}, "cannot be read"),
    ],
)
def test_item_vectors_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray[Any, Any]], said: str
) -> None:
    bundle = write_with_vectors(tmp_path / "tiny", **arrays)
    with pytest.raises(BundleError, match=rf"item_vectors\.npz: .*{said}"):
        bundle.catalog()


def test_a_model_with_item_vectors_needs_their_file(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest.update(item_vector_width=3))
    with pytest.raises(BundleError, match=r"item_vectors\.npz: the manifest does not name it"):
        Bundle.open(path).catalog()
