"""A small bundle on disk, whose graph is a few bytes that nobody runs."""

from pathlib import Path
from typing import Any

import numpy as np

from service.bundle import BundledCatalog, write_bundle, write_catalog
from service.domain import Item


def bundle_fields(**changes: Any) -> dict[str, Any]:
    return {
        "model_version": "tiny-1",
        "created": "2026-01-02T03:04:05+00:00",
        "num_levels": 2,
        "codebook_sizes": (4, 3),
        "max_branch": (4, 3),
        "slate_size": 3,
        "beam_width": 5,
        "max_beam_width": 20,
        "history_length": 7,
        "actions": [{"name": "view", "unit": "s", "value_edges": [1.0, 5.0]}, {"name": "like"}],
        "default_action": "view",
        "score_mode": "full_softmax",
        "has_times": True,
        "graphs": {"generator": {"file": "generator.onnx", "precision": "float32", "inputs": ["a"], "outputs": ["b"]}},
        "golden_tolerance": {"float32": {"logprob_abs": 1e-4}},
        "recipe": {"model": {"width": 8}},
        "commit": "unknown",
        "seed": 3,
        "data_sha256": "0" * 64,
    } | changes


def bundle_catalog() -> BundledCatalog:
    items = [
        Item(item_id="b", title="Ünïcode \n title", text="text", tags=("x", "y"), group="g", available=True),
        Item(item_id="a", available=False),
        Item(item_id="c", tags=("y",)),
    ]
    sids_NL = np.array([[3, 1], [0, 2], [0, 0]], dtype=np.int32)
    return BundledCatalog(items, sids_NL, np.array([5, 0, 2], dtype=np.int64))


def write_graph(path: Path) -> None:
    """A graph and, beside it, its weights."""
    path.write_bytes(b"not really a graph")
    path.with_name("weights.data").write_bytes(bytes(range(256)))


def write_small_bundle(target: Path, **changes: Any) -> None:
    writers = {
        "generator.onnx": write_graph,
        "catalog.parquet": lambda path: write_catalog(path, bundle_catalog()),
        "golden.json": lambda path: path.write_text('{"cases": []}'),
        "MODEL_CARD.md": lambda path: path.write_text("# tiny"),
    }
    write_bundle(target, bundle_fields(**changes), writers)
