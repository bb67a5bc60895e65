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
import torch

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.model.generator import Generator
from model_export.model.items import ItemVectors
from model_export.onnx.assemble import assemble
from model_export.onnx.config import ExportConfig
from model_export.onnx.kept import KeptPieces
from model_export.onnx.model_card import model_card
from model_export.onnx.parity import Parity, decode_requests, golden_cases
from model_export.onnx.pieces import export_pieces
from model_export.onnx.statistics import slate_statistics
from model_export.onnx.variants import explained_difference, measure_variants, sampled_parity
from model_export.onnx.weights import graph_file, save_graphs
from model_export.progress import Progress
from model_export.reward.graph import RewardGraph
from model_export.reward.stage import TrainedReward
from model_export.search.eager import BeamSearch
from model_export.search.graphs import graph_plans
from model_export.train.batches import Collator
from model_export.train.catalog import TrainingCatalog
from model_export.train.stage import TrainedGenerator
from service.bundle import ActionSpec, BundledCatalog, GoldenTolerance, GraphSpec, Manifest, write_bundle, write_catalog
from service.bundle.reader import CODEBOOKS_FILE, ITEM_EMBEDDINGS_FILE, ITEM_ENCODER_FILE, ITEM_VECTORS_FILE
from service.catalog import CatalogSnapshot
from service.catalog.trie import vectors_of_children
from service.errors import BundleError
from service.inference.golden import FILE as GOLDEN_FILE
from service.inference.golden import GoldenCases

_GENERATOR_FILE = graph_file("generator")
_TOKENIZER_FILES = (CODEBOOKS_FILE, ITEM_ENCODER_FILE)


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
    trained_reward: TrainedReward | None = None,
) -> Parity:
    """Writes the bundle to `out`, once the graph has been compared with the model on real histories.

    With a reward model the generator's graph says what it expects of every slate.

    Raises:
        BundleError: the graph strays from the model by more than the tolerance; nothing is written.
    """
    progress = progress or Progress()
    generator, served = trained.generator, _served(trained, trained_reward)
    reward = None if trained_reward is None else RewardGraph(trained_reward.model)
    snapshot = served.snapshot
    progress.say("  exporting the pieces of the graph")
    max_branch = roomy_branches(snapshot.trie.max_branch, generator.spec.codebook_sizes)
    kept = KeptPieces.of_user()
    pieces = export_pieces(generator, reward, kept=kept, progress=progress)
    graphs = assemble(generator, pieces, max_branch, reward)
    sizes = ", ".join(f"{purpose} {len(model.graph.node):,}" for purpose, model in graphs.items())
    progress.say(f"  assembled; nodes: {sizes}; comparing graph and model")
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch)
        save_graphs(graphs, draft)
        fields = _manifest_fields(config, trained, prepared, record, max_branch)
        if reward is not None:
            fields["item_embedding_width"] = reward.embedding_width
        fields["graphs"] = _graph_specs(generator, has_reward=reward is not None)
        examples = _parity_examples(prepared, config.num_parity_requests)
        collator = Collator(prepared, served, generator.spec, generator.start_D.device)
        search = BeamSearch(generator, snapshot, reward)
        history, excluded, slates, batch = decode_requests(search, served, collator, examples, config.beam_width)
        variants = measure_variants(config, _draft_manifest(fields), draft, batch, slates, progress.say)
        explained = explained_difference(_draft_manifest(fields), draft, batch, slates)
        drawn = sampled_parity(config, _draft_manifest(fields), draft, batch, search, history)
    parity = variants[0].parity
    if explained > config.logprob_tolerance:
        raise _disagreement(f"the graph that explains strays by {explained:.2g} from the model's logprobs", kept)
    if not drawn.holds:
        raise _disagreement(f"the graph that draws slates disagrees with the model: {json.dumps(asdict(drawn))}", kept)
    if not parity.holds:
        raise _disagreement(f"the exported graph disagrees with the model: {json.dumps(asdict(parity))}", kept)
    fields["slate_statistics"] = slate_statistics(slates, snapshot, config.choice)
    variants.sort(key=lambda variant: variant.ms)
    progress.say("\n".join(f"  {variant}" for variant in variants))
    fields["variants"] = [variant.record().model_dump() for variant in variants]
    cases = GoldenCases(cases=golden_cases(history, excluded, slates, config.beam_width, config.num_golden_cases))
    card = model_card(fields, parity, variants, prepared, record)
    files = {
        _GENERATOR_FILE: lambda path: save_graphs(graphs, path.parent),
        GOLDEN_FILE: lambda path: _write_text(path, cases.model_dump_json(indent=1)),
        "MODEL_CARD.md": lambda path: _write_text(path, card),
        **{name: _copier(tokenizer_dir / name) for name in _TOKENIZER_FILES},
    }
    write_bundle(out, fields, files | _catalog_writers(snapshot, generator.items))
    return parity


def _disagreement(text: str, kept: KeptPieces | None) -> BundleError:
    hint = f"; to rule out pieces of earlier exports, delete {kept.folder} and export again" if kept else ""
    return BundleError(text + hint)


def _catalog_writers(snapshot: CatalogSnapshot, items: ItemVectors | None) -> dict[str, Callable[[Path], None]]:
    """The catalog, and beside it what the models know of each item."""
    catalog = BundledCatalog(list(snapshot.items), snapshot.sids_NL, snapshot.popularity_N)
    writers: dict[str, Callable[[Path], None]] = {"catalog.parquet": lambda path: write_catalog(path, catalog)}
    if items is not None:
        writers[ITEM_VECTORS_FILE] = _vectors_writer(items, snapshot)
    if (embeddings_NE := snapshot.embeddings_NE) is not None:
        writers[ITEM_EMBEDDINGS_FILE] = lambda path: np.savez(path, embeddings_NE=embeddings_NE)
    return writers


def _served(trained: TrainedGenerator, trained_reward: TrainedReward | None) -> TrainingCatalog:
    """The catalog as it will be served: with vectors and embeddings of its items, where the models read them."""
    catalog, snapshot, items = trained.catalog, trained.catalog.snapshot, trained.generator.items
    if items is not None:
        with torch.no_grad():
            vectors_ND = items().cpu().numpy()
        snapshot = replace(snapshot, child_vectors=vectors_of_children(snapshot.trie, vectors_ND))
    if trained_reward is not None:
        embeddings_NE = trained_reward.items.embedding_NE[catalog.item_of_row_N]
        snapshot = replace(snapshot, embeddings_NE=embeddings_NE.astype(np.float32))
    return replace(catalog, snapshot=snapshot)


def _vectors_writer(items: ItemVectors, snapshot: CatalogSnapshot) -> Callable[[Path], None]:
    vectors_ND = snapshot.child_vectors[-1]
    projection_DE, centre_E = items.projection.weight.detach().cpu().numpy(), items.centre_E.cpu().numpy()
    return lambda path: np.savez(path, vectors_ND=vectors_ND, projection_DE=projection_DE, centre_E=centre_E)


def roomy_branches(max_branch: tuple[int, ...], codebook_sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Room for new items: a quarter more children than any node has now, at least four, at most the codebook."""
    return tuple(
        min(size, branch + max(4, branch // 4)) for branch, size in zip(max_branch, codebook_sizes, strict=True)
    )


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
        "choice": config.choice,
        # What is allowed is the recipe's to say, whatever is installed here.
        "golden_tolerance": {
            "float32": GoldenTolerance(
                logprob_abs=config.logprob_tolerance, reward_abs=config.reward_tolerance
            ).model_dump(),
            "bfloat16": GoldenTolerance(logprob_abs=config.bfloat16_tolerance).model_dump(),
        },
        "recipe": dict(record.recipe),
        "commit": _commit(),
        "seed": record.seed,
        "data_sha256": prepared.meta["data_sha256"],
        "metrics": dict(record.metrics),
    }


def _graph_specs(generator: Generator, *, has_reward: bool) -> dict[str, dict[str, Any]]:
    specs: dict[str, dict[str, Any]] = {}
    for plan in graph_plans(generator, has_reward=has_reward):
        file = graph_file(plan.purpose)
        spec = GraphSpec(file=file, precision="float32", inputs=plan.inputs, outputs=plan.outputs)
        specs[plan.purpose] = spec.model_dump()
    return specs


def _draft_manifest(fields: Mapping[str, Any]) -> Manifest:
    return Manifest.model_validate({**fields, "files": {graph["file"]: "draft" for graph in fields["graphs"].values()}})


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
