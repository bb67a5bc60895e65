"""The stage `export`: from a trained generator to a bundle that serves."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from model_export.data import Examples, PreparedData
from model_export.model import ItemVectors
from model_export.onnx.assemble import assemble
from model_export.onnx.config import ExportConfig
from model_export.onnx.model_card import model_card
from model_export.onnx.parity import Parity, compare, golden_cases, run_both
from model_export.onnx.pieces import export_pieces
from model_export.progress import Progress
from model_export.search import BeamSearch, Slates
from model_export.search.driver import OUTPUTS, graph_inputs
from model_export.train import TrainedGenerator
from model_export.train.batches import Collator
from model_export.train.catalog import TrainingCatalog
from service.bundle import ActionSpec, BundledCatalog, GoldenTolerance, GraphSpec, Manifest, write_bundle, write_catalog
from service.bundle.reader import ITEM_VECTORS_FILE
from service.catalog import CatalogSnapshot
from service.catalog.trie import vectors_of_children
from service.errors import BundleError
from service.inference.golden import FILE as GOLDEN_FILE
from service.inference.golden import GoldenCases
from service.inference.ort_runner import OrtRunner

GRAPH_FILE = "generator.onnx"
WEIGHTS_FILE = "weights.data"
_TOKENIZER_FILES = ("codebooks.npz", "item_encoder.npz")


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """Where a model comes from, for its manifest and card."""

    name: str
    """Of the recipe."""
    recipe: Mapping[str, Any]
    """Resolved."""
    metrics: Mapping[str, float]
    """Test metrics by name."""
    seed: int


def export(
    config: ExportConfig,
    trained: TrainedGenerator,
    prepared: PreparedData,
    tokenizer_dir: Path,
    record: ModelRecord,
    out: Path,
    progress: Progress | None = None,
) -> Parity:
    """Writes the bundle to `out`, once the graph has been compared with the model on real histories.

    Raises:
        BundleError: the graph strays from the model by more than the tolerance; nothing is written.
    """
    progress = progress or Progress()
    generator, served = trained.generator, _with_vectors(trained)
    snapshot = served.snapshot
    progress.say("  exporting the pieces of the graph")
    max_branch = roomy_branches(snapshot.trie.max_branch, generator.spec.codebook_sizes)
    model = assemble(generator, export_pieces(generator), max_branch)
    progress.say(f"  assembled {len(model.graph.node):,} nodes; comparing graph and model")
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / GRAPH_FILE
        save_graph(model, draft)
        fields = _manifest_fields(config, trained, prepared, record, max_branch)
        runner = OrtRunner(_draft_manifest(fields), draft)
        examples = _parity_examples(prepared, config.num_parity_requests)
        collator = Collator(prepared, served, generator.spec, generator.start_D.device)
        search = BeamSearch(generator, snapshot)
        history, excluded, slates, decoded = run_both(runner, search, served, collator, examples, config.beam_width)
    parity = compare(slates, decoded, config.logprob_tolerance)
    if not parity.holds:
        raise BundleError(f"the exported graph disagrees with the model: {json.dumps(asdict(parity))}")
    fields["slate_statistics"] = slate_statistics(slates, snapshot.popularity_N)
    cases = GoldenCases(cases=golden_cases(history, excluded, slates, config.beam_width, config.num_golden_cases))
    catalog = BundledCatalog(list(snapshot.items), snapshot.sids_NL, snapshot.popularity_N)
    card = model_card(fields, parity, prepared, record)
    write_bundle(
        out,
        fields,
        {
            GRAPH_FILE: lambda path: save_graph(model, path),
            "catalog.parquet": lambda path: write_catalog(path, catalog),
            GOLDEN_FILE: lambda path: _write_text(path, cases.model_dump_json(indent=1)),
            "MODEL_CARD.md": lambda path: _write_text(path, card),
            **{name: _copier(tokenizer_dir / name) for name in _TOKENIZER_FILES},
            **({} if generator.items is None else {ITEM_VECTORS_FILE: _vectors_writer(generator.items, snapshot)}),
        },
    )
    return parity


def _with_vectors(trained: TrainedGenerator) -> TrainingCatalog:
    """The catalog as it will be served: with the vectors of its items, where the generator has any."""
    catalog, items = trained.catalog, trained.generator.items
    if items is None:
        return catalog
    with torch.no_grad():
        vectors_ND = items().cpu().numpy()
    snapshot = replace(catalog.snapshot, child_vectors=vectors_of_children(catalog.snapshot.trie, vectors_ND))
    return replace(catalog, snapshot=snapshot)


def _vectors_writer(items: ItemVectors, snapshot: CatalogSnapshot) -> Callable[[Path], None]:
    vectors_ND = snapshot.child_vectors[-1]
    projection_DE, centre_E = items.projection.weight.detach().cpu().numpy(), items.centre_E.cpu().numpy()
    return lambda path: np.savez(path, vectors_ND=vectors_ND, projection_DE=projection_DE, centre_E=centre_E)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Writes the graph, and beside it its weights in one file that further graphs of the bundle may share."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, str(path), save_as_external_data=True, location=WEIGHTS_FILE, size_threshold=1024)
    # onnx makes it readable to its owner alone, while a service runs as another user.
    weights = path.with_name(WEIGHTS_FILE)
    if weights.exists():
        weights.chmod(path.stat().st_mode)


def roomy_branches(max_branch: tuple[int, ...], codebook_sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Room for new items: a quarter more children than any node has now, at least four, at most the codebook."""
    return tuple(
        min(size, branch + max(4, branch // 4)) for branch, size in zip(max_branch, codebook_sizes, strict=True)
    )


def slate_statistics(slates: Slates, popularity_N: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[str, float]:
    """What the model's best slates look like, to compare served slates with.

    `coverage`: share of the catalog shown; `entropy_bits`: of the items shown; `popular_share`: share of places that
    the most popular tenth of the catalog takes; `mean_score`: mean of the best beams' scores.
    """
    rows = slates.item_rows_BWK[:, 0].numpy().ravel()
    rows = rows[rows >= 0]
    counts = np.bincount(rows, minlength=len(popularity_N))
    shares = counts[counts > 0] / max(len(rows), 1)
    popular = np.argsort(-popularity_N, kind="stable")[: max(1, len(popularity_N) // 10)]
    return {
        "coverage": float((counts > 0).mean()),
        "entropy_bits": float(-(shares * np.log2(shares)).sum()),
        "popular_share": float(counts[popular].sum() / max(len(rows), 1)),
        "mean_score": float(slates.scores_BW[:, 0].mean()),
    }


def _parity_examples(prepared: PreparedData, count: int) -> Examples:
    """Test examples if there are any, else training examples; evenly spaced over them all."""
    examples = prepared.examples("test")
    if len(examples) == 0:
        examples = prepared.examples("train")
    step = max(1, len(examples) // count)
    return examples[slice(None, None, step)][slice(0, count)]


def _manifest_fields(
    config: ExportConfig,
    trained: TrainedGenerator,
    prepared: PreparedData,
    record: ModelRecord,
    max_branch: tuple[int, ...],
) -> dict[str, Any]:
    spec = trained.generator.spec
    now = datetime.now(UTC)
    inputs = graph_inputs(spec.num_levels, has_vectors=trained.generator.affinity is not None)
    graph = GraphSpec(file=GRAPH_FILE, precision="float32", inputs=inputs, outputs=OUTPUTS).model_dump()
    return {
        "model_version": f"{record.name}-{now:%Y%m%d-%H%M%S}",
        "created": now.isoformat(timespec="seconds"),
        "num_levels": spec.num_levels,
        "codebook_sizes": spec.codebook_sizes,
        "max_branch": max_branch,
        "slate_size": spec.slate_size,
        "beam_width": config.beam_width,
        "max_beam_width": config.max_beam_width,
        "history_length": spec.history_length,
        "item_vector_width": trained.generator.config.item_vector_width,
        "actions": [ActionSpec(**asdict(action)).model_dump() for action in prepared.actions],
        "default_action": prepared.meta["default_action"],
        "score_mode": trained.generator.config.score_mode,
        "has_times": spec.has_times,
        "graphs": {"generator": graph},
        "golden_tolerance": {"float32": GoldenTolerance(logprob_abs=config.logprob_tolerance).model_dump()},
        "recipe": dict(record.recipe),
        "commit": _commit(),
        "seed": record.seed,
        "data_sha256": prepared.meta["data_sha256"],
        "metrics": dict(record.metrics),
    }


def _draft_manifest(fields: Mapping[str, Any]) -> Manifest:
    return Manifest.model_validate({**fields, "files": {GRAPH_FILE: "draft"}})


def _commit() -> str:
    """The commit of the code that exports; `unknown` outside a git checkout."""
    try:
        found = subprocess.run(
            ["/usr/bin/env", "git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _copier(source: Path) -> Any:
    return lambda path: shutil.copyfile(source, path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
