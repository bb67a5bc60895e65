"""Two small generators as graphs, and the arrays of a problem as the runner takes them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from search_problems import VECTOR_WIDTH, Problem, item_vectors, make_affinity_matter, make_catalog, rows_of
from untraced import untraced

from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.generator import Generator, HistoryBatch
from model_export.onnx.assemble import assemble
from model_export.onnx.kept import KeptPieces
from model_export.onnx.pieces import export_pieces
from model_export.onnx.weights import graph_file, save_graphs
from model_export.reward.config import RewardConfig
from model_export.reward.graph import RewardGraph
from model_export.reward.model import RewardModel
from model_export.search.eager import BeamSearch, Slates
from model_export.search.graphs import graph_plans
from service.bundle import Manifest
from service.bundle.manifest import Precision, Purpose
from service.catalog import CatalogSnapshot
from service.catalog.trie import vectors_of_children
from service.inference.openvino_runner import OpenVinoRunner
from service.inference.ort_runner import OrtRunner
from service.inference.runner import Batch, Decoded

EMBEDDING_WIDTH = 5
TOLERANCE = 1e-4
BFLOAT16_TOLERANCE = 0.3
"""Of random weights, whose logits are large."""


@dataclass(frozen=True)
class Exported:
    """A generator, its graphs on disk, and a runner of them."""

    generator: Generator
    graphs: dict[Purpose, onnx.ModelProto]
    folder: Path
    runner: OrtRunner
    reward: RewardGraph | None = None

    @property
    def model(self) -> onnx.ModelProto:
        """The generator's graph."""
        return self.graphs["generator"]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Per level."""
        return self.generator.spec.codebook_sizes

    def fields(self) -> dict[str, Any]:
        """Of the manifest, without `files`."""
        return manifest_fields(self.generator, self.reward)

    def another_runner(self, num_threads: int) -> OrtRunner:
        """The same graph with other threads."""
        return OrtRunner(self.runner.manifest, self.folder, num_threads=num_threads)

    def in_openvino(self, precision: Precision = "float32", num_threads: int = 1) -> OpenVinoRunner:
        """The same graph in another engine."""
        return OpenVinoRunner(self.runner.manifest, self.folder, precision=precision, num_threads=num_threads)


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


def vector_generator(num_experts: int = 3) -> Generator:
    """One layer of experts, three levels, slates of three, item vectors; the catalogs of problems bring their own."""
    torch.manual_seed(3)
    config = ModelConfig(
        width=16, num_heads=2, head_width=8, encoder_layers=1, decoder_layers=1, feed_forward_width=24,
        num_experts=num_experts, num_active_experts=min(num_experts, 2), dropout=0.1,
        score_mode="legal_softmax", item_vector_width=VECTOR_WIDTH,
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
    """The catalog with vectors and embeddings of its items; a graph that knows of none is not given them."""
    with torch.no_grad():
        vectors_ND = item_vectors(catalog)().numpy()
    embeddings_NE = np.random.default_rng(catalog.num_items).normal(size=(catalog.num_items, EMBEDDING_WIDTH))
    return replace(
        catalog,
        child_vectors=vectors_of_children(catalog.trie, vectors_ND),
        embeddings_NE=embeddings_NE.astype(np.float32),
    )


def lively_reward(spec: GeneratorSpec, **config: Any) -> RewardGraph:
    """A reward model of the generator's items that reads shorter histories; large random weights, two signals."""
    torch.manual_seed(7)
    spec = replace(spec, history_length=3, embedding_width=EMBEDDING_WIDTH)
    model = RewardModel(RewardConfig(width=8, num_heads=2, head_width=4, **config), spec, (1.0, -0.5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        model.centre_E.normal_(std=0.3)
        model.scale_S.copy_(torch.tensor([0.7, 1.3]))
        model.shift_S.copy_(torch.tensor([-0.2, 0.4]))
    return RewardGraph(model)


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


def export_to(folder: Path, generator: Generator, reward: RewardGraph | None = None) -> Exported:
    """Writes its graphs and their weights; they have room for every catalog of its codebooks."""
    with untraced():
        pieces = export_pieces(generator, reward, kept=KeptPieces.of_user())
    graphs = assemble(generator, pieces, generator.spec.codebook_sizes, reward)
    save_graphs(graphs, folder)
    files = {graph_file(purpose): "draft" for purpose in graphs}
    manifest = Manifest.model_validate({**manifest_fields(generator, reward), "files": files})
    return Exported(generator, graphs, folder, OrtRunner(manifest, folder, num_threads=1), reward)


def manifest_fields(generator: Generator, reward: RewardGraph | None = None) -> dict[str, Any]:
    """What a manifest says of this generator."""
    spec = generator.spec
    graphs = {
        plan.purpose: {
            "file": graph_file(plan.purpose), "precision": "float32", "inputs": plan.inputs, "outputs": plan.outputs
        }
        for plan in graph_plans(generator, has_reward=reward is not None)
    }  # fmt: skip
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
        "item_embedding_width": 0 if reward is None else reward.embedding_width,
        "actions": [{"name": "view"}, {"name": "like"}],
        "default_action": "view",
        "score_mode": generator.config.score_mode,
        "has_times": spec.has_times,
        "graphs": graphs,
        "golden_tolerance": {
            "float32": {"logprob_abs": TOLERANCE},
            "bfloat16": {"logprob_abs": BFLOAT16_TOLERANCE},
        },
        "recipe": {},
        "commit": "unknown",
        "seed": 0,
        "data_sha256": "0" * 64,
    }


def as_batch(problem: Problem, beam_width: int) -> Batch:
    """The problem's arrays."""
    return Batch(
        **{f"history_{name}": getattr(problem.history, name).numpy() for name in ("codes_BTL", "actions_BT")},
        **{f"history_{name}": getattr(problem.history, name).numpy() for name in ("ages_BT", "values_BT")},
        history_rows_BT=rows_of(problem.history, problem.catalog).numpy(),
        history_lengths_B=problem.history.lengths_B.numpy(),
        excluded_rows_BX=problem.excluded_BX.numpy(),
        filter_slots_B=np.array(problem.slots, dtype=np.int32),
        allowed_cumsum_FN=problem.cumsum_FN.numpy(),
        group_limits_B=np.array(problem.limits or (0,) * problem.num_requests, dtype=np.int32),
        diversities_B=np.array(problem.diversities or (0,) * problem.num_requests, dtype=np.float32),
        beam_width=beam_width,
        catalog=served(problem.catalog),
    )


def eager(exported: Exported, problem: Problem, beam_width: int, search_class: type[BeamSearch] = BeamSearch) -> Slates:
    """What the model itself decodes."""
    search = search_class(exported.generator, served(problem.catalog), exported.reward)
    history = replace(problem.history, rows_BT=rows_of(problem.history, problem.catalog))
    return search.decode(history, beam_width=beam_width, **problem.restrictions())


def take_requests(problem: Problem, places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Problem:
    """Some of the problem's requests, in another order, against the same catalog and filters."""
    history = problem.history
    names = ("codes_BTL", "actions_BT", "ages_BT", "values_BT", "lengths_B")
    return Problem(
        catalog=problem.catalog,
        history=HistoryBatch(**{name: getattr(history, name)[torch.from_numpy(places)] for name in names}),
        excluded=tuple(problem.excluded[place] for place in places),
        allowed_FN=problem.allowed_FN,
        slots=tuple(problem.slots[place] for place in places),
        limits=tuple(problem.limits[place] for place in places) if problem.limits else (),
        diversities=tuple(problem.diversities[place] for place in places) if problem.diversities else (),
    )


def arrays(decoded: Decoded) -> tuple[np.ndarray[Any, Any], ...]:
    """All outputs."""
    return decoded.item_rows_BWK, decoded.item_valid_BWK, decoded.level_logprobs_BWKL, decoded.scores_BW
