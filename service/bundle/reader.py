"""Opens a bundle and trusts nothing in it before its hashes and its schema agree."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from service.bundle.manifest import FORMAT_VERSION, Manifest, manifest_digest
from service.domain import Item
from service.errors import BundleError

CATALOG_FILE = "catalog.parquet"
CODEBOOKS_FILE = "codebooks.npz"
"""`level_0`, `level_1`, ...: the codebook [V, E] of each level."""
ITEM_ENCODER_FILE = "item_encoder.npz"
ITEM_VECTORS_FILE = "item_vectors.npz"
"""`vectors_ND`: the model's vector of each item, in the order of the catalog; `projection_DE`, `centre_E`: what makes
the vector of a new item from its embedding e, normalise(projection (e - centre))."""
ITEM_EMBEDDINGS_FILE = "item_embeddings.npz"
"""`embeddings_NE`: the tokenizer's embedding of each item, in the order of the catalog; a new item's is what
`ItemEncoder` makes of it."""
CATALOG_SCHEMA = pa.schema(
    {
        "item_id": pa.string(),
        "title": pa.string(),
        "text": pa.string(),
        "tags": pa.list_(pa.string()),
        "group": pa.string(),
        "available": pa.bool_(),
        "num_events": pa.int64(),
        "sid": pa.list_(pa.int32()),
    }
)
"""Columns of `catalog.parquet`; no cell may be empty."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk. The big arrays are read when asked for."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Reads the manifest and checks the sha256 of every file it names.

        Raises:
            BundleError: a missing or damaged file, or a manifest of another schema; the message names the file.
        """
        manifest = read_manifest(path / "manifest.json")
        for name, expected in manifest.files.items():
            file = path / name
            # A name that leaves the directory would let a manifest vouch for files outside the bundle.
            if Path(name).name != name:
                raise BundleError(f"{path}: manifest names {name!r}, which is not a plain file name")
            if not file.is_file():
                raise BundleError(f"{file}: missing, but the manifest names it")
            if (actual := file_sha256(file)) != expected:
                raise BundleError(f"{file}: sha256 is {actual[:12]}..., the manifest says {expected[:12]}...")
        return cls(path, manifest)

    def catalog(self) -> "BundledCatalog":
        """The items the model was trained with.

        Raises:
            BundleError: the manifest does not vouch for the file, or it is no table of items; the message says why.
        """
        file = self.path / CATALOG_FILE
        if CATALOG_FILE not in self.manifest.files:
            raise BundleError(f"{file}: the manifest does not name it")
        table = _read_table(file)
        columns = [table.column(name).to_pylist() for name in CATALOG_SCHEMA.names]
        items = [
            Item(item_id=item_id, title=title, text=text, tags=tuple(tags), group=group, available=available)
            for item_id, title, text, tags, group, available, _, _ in zip(*columns, strict=True)
        ]
        sids = columns[-1]
        if any(len(sid) != self.manifest.num_levels for sid in sids):
            raise BundleError(f"{file}: a sid has not {self.manifest.num_levels} levels")
        sids_NL = np.array(sids, dtype=np.int32).reshape(len(items), self.manifest.num_levels)
        return BundledCatalog(
            items,
            sids_NL,
            np.array(columns[-2], dtype=np.int64),
            self._of_items(ITEM_VECTORS_FILE, "vectors_ND", (len(items), self.manifest.item_vector_width)),
            self._of_items(ITEM_EMBEDDINGS_FILE, "embeddings_NE", (len(items), self.manifest.item_embedding_width)),
        )

    def _of_items(self, name: str, array: str, shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
        """An array of the file with a row for each item; None where the manifest says that rows hold nothing."""
        if shape[1] == 0:
            return None
        file = self.path / name
        if name not in self.manifest.files:
            raise BundleError(f"{file}: the manifest does not name it")
        try:
            with np.load(file) as arrays:
                found: npt.NDArray[np.float32] = arrays[array]
        except (OSError, ValueError, KeyError) as error:
            raise BundleError(f"{file}: cannot be read: {error}") from error
        if found.shape != shape or found.dtype != np.float32:
            holds = f"{found.dtype} {found.shape}"
            raise BundleError(f"{file}: holds {holds}, but catalog and manifest say float32 {shape}")
        return found


@dataclass(frozen=True, slots=True)
class BundledCatalog:
    """`catalog.parquet`: N items, in the file's order."""

    items: list[Item]
    sids_NL: npt.NDArray[np.int32]
    num_events_N: npt.NDArray[np.int64]
    """Training events of each item: the popularity that fallbacks go by."""
    vectors_ND: npt.NDArray[np.float32] | None = None
    """The model's vector of each item, if it has any."""
    embeddings_NE: npt.NDArray[np.float32] | None = None
    """The tokenizer's embedding of each item, if the reward model reads it."""


def file_sha256(file: Path) -> str:
    """sha256 hex digest of a file, read in pieces."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _read_table(file: Path) -> pa.Table:
    """The columns of `CATALOG_SCHEMA` in its order and types, every cell filled."""
    try:
        table = pq.read_table(file)
        if missing := [name for name in CATALOG_SCHEMA.names if name not in table.column_names]:
            raise BundleError(f"{file}: lacks the column(s) {', '.join(missing)}")
        table = table.select(CATALOG_SCHEMA.names).cast(CATALOG_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise BundleError(f"{file}: cannot be read: {error}") from error
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count or (pa.types.is_list(column.type) and column.combine_chunks().flatten().null_count):
            raise BundleError(f"{file}: column {name} has an empty cell")
    return table


def read_manifest(file: Path) -> Manifest:
    """A manifest that is what it was when it was written; the files that it names are not looked at.

    Raises:
        BundleError: it is not there, of another schema, or was changed; the message says what is wrong.
    """
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{file.parent}: no bundle here (manifest.json is missing)") from None
    except (ValueError, OSError) as error:
        raise BundleError(f"{file}: cannot be read: {error}") from error
    found = raw.get("format_version", FORMAT_VERSION) if isinstance(raw, dict) else FORMAT_VERSION
    if found != FORMAT_VERSION:
        hint = "export the model again" if found in range(FORMAT_VERSION) else "a newer OneSlate wrote it"
        raise BundleError(f"{file}: format_version is {found!r}, this version reads {FORMAT_VERSION}: {hint}")
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{file}: {where}: {first['msg']}") from error
    # After the schema: a field that is missing or misspelt is better said by its name than by a digest.
    if manifest.manifest_sha256 != manifest_digest(raw):
        raise BundleError(f"{file}: was changed after it was written (manifest_sha256 does not agree)")
    return manifest
