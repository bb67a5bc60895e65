"""Bundles for the fake runner, which can be told apart by what they answer."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from service.bundle import BundledCatalog, write_bundle, write_catalog
from service.inference.fake_runner import fake_catalog, fake_manifest

NUM_ITEMS = 60


def write_model(folder: Path, version: str) -> Path:
    """A bundle whose items are named after it, so that an answer shows whose items it holds."""
    catalog = fake_catalog(NUM_ITEMS)
    items = [replace(item, item_id=f"{version}:{item.item_id}") for item in catalog.items]
    bundled = BundledCatalog(items=tuple(items), sids_NL=catalog.sids_NL, num_events_N=np.arange(NUM_ITEMS))
    fields = fake_manifest().model_dump(mode="json", exclude={"files"}) | {"model_version": version}
    path = folder / version
    write_bundle(
        path,
        fields,
        {
            "catalog.parquet": lambda file: write_catalog(file, bundled),
            "generator.onnx": lambda file: file.write_bytes(version.encode()),
        },
    )
    return path
