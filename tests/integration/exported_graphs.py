"""Two small generators as graphs, and the arrays of a problem as the runner takes them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from search_problems import VECTOR_WIDTH, Problem, item_vectors, make_affinity_matter, make_catalog, rows_of

from model_export.model import Generator, GeneratorSpec, HistoryBatch, ModelConfig
from model_export.onnx.assemble import assemble
from model_export.onnx.export import save_graph
from model_export.onnx.pieces import export_pieces
from model_export.search import BeamSearch, Slates
from model_export.search.driver import OUTPUTS, graph_inputs
from service.bundle import Manifest
from service.catalog import CatalogSnapshot
from service.catalog.trie import vectors_of_children
from service.inference.ort_runner import OrtRunner
from service.inference.runner import Batch, Decoded

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """A generator, its graph on disk, and a runner of it."""

    generator: Generator
    model: onnx.ModelProto
    folder: Path
    runner: OrtRunner

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Per level."""
        return self.generator.spec.codebook_sizes

    def fields(self) -> dict[str, Any]:
        """Of the manifest, without `files`."""
        return manifest_fields(self.generator)

    def another_runner(self, num_threads: int) -> OrtRunner:
        """The same graph with other threads."""
        return OrtRunner(self.runner.manifest, self.folder / "generator.onnx", num_threads=num_threads)


def mixture_generator() -> Generator:
    """Two decoder layers of experts, three levels, slates of three; histories of at most four events are trained on."""
    torch.manual_seed(3)
    config = ModelConfig(
        width=16, num_heads=2, head_width=8, encoder_layers=1, decoder_layers=2, feed_forward_width=24,
        num_experts=4, num_active_experts=2, expert_bias_rate=0.01, dropout=0.1, score_mode="full_softmax",
    )  # fmt: skip
    spec = GeneratorSpec(
        codebook_sizes=(7, 5, 4), slate_size=3, history_length=4, value_edges=((1.0, 5.0), ()), has_times=True
    )
    return _lively(Generator(config, spec))


def dense_generator() -> Generator:
    """One dense layer, two levels, one item, no times and no values."""
    torch.manual_seed(3)
    config = ModelConfig(
        width=16, num_heads=2, head_width=8, encoder_layers=1, decoder_layers=1, feed_forward_width=24,
        num_experts=1, dropout=0.1, score_mode="legal_softmax",
    )  # fmt: skip
    spec = GeneratorSpec(codebook_sizes=(9, 8), slate_size=1, history_length=20, value_edges=((), ()), has_times=False)
    return _lively(Generator(config, spec))


def vector_generator() -> Generator:
    """One layer of experts, three levels, slates of three, item vectors; the catalogs of problems bring their own."""
    torch.manual_seed(3)
    config = ModelConfig(
        width=16, num_heads=2, head_width=8, encoder_layers=1, decoder_layers=1, feed_forward_width=24,
        num_experts=3, num_active_experts=2, dropout=0.1, score_mode="legal_softmax", item_vector_width=VECTOR_WIDTH,
    )  # fmt: skip
    spec = GeneratorSpec(
        codebook_sizes=(7, 5, 4), slate_size=3, history_length=4, value_edges=((1.0, 5.0), ()), has_times=True,
        embedding_width=VECTOR_WIDTH + 2,
    )  # fmt: skip
    generator = _lively(Generator(config, spec, item_vectors(make_catalog([(0, 0, 0), (6, 4, 3)]))))
    assert generator.affinity is not None
    make_affinity_matter(generator.affinity)
    return generator


def served(catalog: CatalogSnapshot) -> CatalogSnapshot:
    """The catalog with vectors of its items; a graph that knows of none is not given them."""
    with torch.no_grad():
        vectors_ND = item_vectors(catalog)().numpy()
    return replace(catalog, child_vectors=vectors_of_children(catalog.trie, vectors_ND))


def _lively(generator: Generator) -> Generator:
    """Large enough random weights that histories and earlier items change the ranking."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.startswith("heads.") or "embedding" in name or name in {"level_LD", "position_KD", "start_D"}:
                parameter.normal_()
        for name, buffer in generator.named_buffers():
            if name.endswith("choice_bias_E"):
                buffer.normal_()
    return generator.eval()


def export_to(folder: Path, generator: Generator) -> Exported:
    """Writes `generator.onnx` and its weights; the graph has room for every catalog of its codebooks."""
    model = assemble(generator, export_pieces(generator), generator.spec.codebook_sizes)
    save_graph(model, folder / "generator.onnx")
    manifest = Manifest.model_validate({**manifest_fields(generator), "files": {"generator.onnx": "draft"}})
    return Exported(generator, model, folder, OrtRunner(manifest, folder / "generator.onnx", num_threads=1))


def manifest_fields(generator: Generator) -> dict[str, Any]:
    """What a manifest says of this generator."""
    spec = generator.spec
    inputs = graph_inputs(spec.num_levels, has_vectors=generator.affinity is not None)
    graph = {"file": "generator.onnx", "precision": "float32", "inputs": inputs, "outputs": OUTPUTS}
    return {
        "model_version": "tiny-1",
        "created": "2026-01-02T03:04:05+00:00",
        "num_levels": spec.num_levels,
        "codebook_sizes": spec.codebook_sizes,
        "max_branch": spec.codebook_sizes,
        "slate_size": spec.slate_size,
        "beam_width": 5,
        "max_beam_width": 20,
        "history_length": spec.history_length,
        "item_vector_width": generator.config.item_vector_width,
        "actions": [{"name": "view"}, {"name": "like"}],
        "default_action": "view",
        "score_mode": generator.config.score_mode,
        "has_times": spec.has_times,
        "graphs": {"generator": graph},
        "golden_tolerance": {"float32": {"logprob_abs": TOLERANCE}},
        "recipe": {},
        "commit": "unknown",
        "seed": 0,
        "data_sha256": "0" * 64,
    }


def as_batch(problem: Problem, beam_width: int) -> Batch:
    """The problem's arrays."""
    return Batch(
        **{f"history_{name}": getattr(problem.history, name).numpy() for name in ("codes_BTL", "actions_BT")},
        **{f"history_{name}": getattr(problem.history, name).numpy() for name in ("times_BT", "values_BT")},
        history_rows_BT=rows_of(problem.history, problem.catalog).numpy(),
        history_lengths_B=problem.history.lengths_B.numpy(),
        now_B=problem.history.now_B.numpy(),
        excluded_rows_BX=problem.excluded_BX.numpy(),
        filter_slots_B=np.array(problem.slots, dtype=np.int32),
        allowed_cumsum_FN=problem.cumsum_FN.numpy(),
        beam_width=beam_width,
        catalog=served(problem.catalog),
    )


def eager(exported: Exported, problem: Problem, beam_width: int) -> Slates:
    """What the model itself decodes."""
    search = BeamSearch(exported.generator, served(problem.catalog))
    history = replace(problem.history, rows_BT=rows_of(problem.history, problem.catalog))
    return search.decode(history, beam_width=beam_width, **problem.restrictions())


def take_requests(problem: Problem, places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Problem:
    """Some of the problem's requests, in another order, against the same catalog and filters."""
    history = problem.history
    names = ("codes_BTL", "actions_BT", "times_BT", "values_BT", "lengths_B", "now_B")
    return Problem(
        catalog=problem.catalog,
        history=HistoryBatch(**{name: getattr(history, name)[torch.from_numpy(places)] for name in names}),
        excluded=tuple(problem.excluded[place] for place in places),
        allowed_FN=problem.allowed_FN,
        slots=tuple(problem.slots[place] for place in places),
    )


def arrays(decoded: Decoded) -> tuple[np.ndarray[Any, Any], ...]:
    """All outputs."""
    return decoded.item_rows_BWK, decoded.item_valid_BWK, decoded.level_logprobs_BWKL, decoded.scores_BW
