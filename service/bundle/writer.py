"""Writes a bundle: all files first, the manifest last, the directory in one rename."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.bundle.manifest import Manifest, manifest_digest
from service.bundle.reader import CATALOG_SCHEMA, BundledCatalog, file_sha256


def write_bundle(target: Path, fields: Mapping[str, Any], writers: Mapping[str, Callable[[Path], None]]) -> Manifest:
    """Writes the files, hashes them, writes the manifest and moves all into place at once.

    A reader sees the old bundle or the new one, never a half of either.

    Args:
        target: The bundle's directory; replaced if it is there.
        fields: Fields of `Manifest`, without `files`.
        writers: File name -> function that writes it to the path it is given. A function may write further files
            beside its own (an ONNX graph's weights); all that lies in the directory is hashed.
    """
    staging = target.with_name(f".{target.name}.writing")
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    for name, write in writers.items():
        write(staging / name)
    files = {file.name: file_sha256(file) for file in sorted(staging.iterdir())}
    manifest = Manifest.model_validate({**fields, "files": files})
    manifest = manifest.model_copy(update={"manifest_sha256": manifest_digest(json.loads(manifest.model_dump_json()))})
    (staging / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n")
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
        staging.rename(target)
        shutil.rmtree(old)
    else:
        staging.rename(target)
    return manifest


def write_catalog(file: Path, catalog: BundledCatalog) -> None:
    """Writes `catalog.parquet`: one row per item, columns as in `CATALOG_SCHEMA`."""
    items = catalog.items
    assert len(items) == len(catalog.sids_NL) == len(catalog.num_events_N)
    columns: list[Any] = [
        [item.item_id for item in items],
        [item.title for item in items],
        [item.text for item in items],
        [item.tags for item in items],
        [item.group for item in items],
        [item.available for item in items],
        catalog.num_events_N,
        list(catalog.sids_NL),
    ]
    pq.write_table(pa.table(columns, schema=CATALOG_SCHEMA), file)


def write_json(file: Path, value: object) -> None:
    """Writes JSON in one rename, so that a reader never sees half of it."""
    partial = file.with_name(f".{file.name}.writing")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    partial.replace(file)
