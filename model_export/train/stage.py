"""The stage `train`: from a prepared data set and sids to the weights of a generator."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch

from model_export.data.prepared import PreparedData
from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.generator import Generator
from model_export.model.items import ItemVectors
from model_export.model.trie import TriePaths
from model_export.progress import Progress
from model_export.train.catalog import TrainingCatalog
from model_export.train.config import TrainConfig
from model_export.train.loop import METRICS, WEIGHTS, Trainer

MODEL = "model.json"


@dataclass(frozen=True, kw_only=True)
class TrainedGenerator:
    """A trained generator with the catalog it was trained for."""

    generator: Generator
    catalog: TrainingCatalog

    @classmethod
    def load(cls, out: Path, prepared: PreparedData, sids_NL: npt.NDArray[np.int32]) -> "TrainedGenerator":
        """Reads what `train` wrote to `out`."""
        model = json.loads((out / MODEL).read_text())
        spec = model["spec"]
        for name in ("codebook_sizes", "value_edges"):
            spec[name] = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in spec[name])
        catalog = TrainingCatalog.build(prepared, sids_NL)
        generator = _generator(ModelConfig(**model["config"]), GeneratorSpec(**spec), catalog, None)
        generator.load_state_dict(torch.load(out / WEIGHTS, weights_only=True, map_location="cpu"))
        return cls(generator=generator.eval(), catalog=catalog)


def train(
    config: TrainConfig,
    model: ModelConfig,
    prepared: PreparedData,
    sids_NL: npt.NDArray[np.int32],
    codebook_sizes: tuple[int, ...],
    out: Path,
    progress: Progress | None = None,
    embedding_NE: npt.NDArray[np.floating] | None = None,
) -> TrainedGenerator:
    """Trains a generator, going on from a checkpoint in `out`.

    Args:
        config: How to train.
        model: What to train.
        prepared: The data set; examples of `train` are learned, those of `valid` choose the epoch.
        sids_NL: The sid of every prepared item.
        codebook_sizes: Codes per level.
        out: Folder for weights, checkpoint, `metrics.jsonl` and the learning curves.
        progress: Where to show how far it is.
        embedding_NE: An embedding of every prepared item; needed where `model.item_vector_width` is positive.
    """
    if model.item_vector_width > 0 and embedding_NE is None:
        raise ValueError("model.item_vector_width needs item embeddings")
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    catalog = TrainingCatalog.build(prepared, sids_NL)
    spec = GeneratorSpec(
        codebook_sizes=codebook_sizes,
        slate_size=1 if config.targets == "item" else prepared.slate_size,
        history_length=config.history_length,
        value_edges=tuple(action.value_edges for action in prepared.actions),
        has_times=prepared.has_times,
        embedding_width=0 if model.item_vector_width == 0 or embedding_NE is None else embedding_NE.shape[1],
    )
    generator = _generator(model, spec, catalog, embedding_NE).to(device)
    out.mkdir(parents=True, exist_ok=True)
    (out / MODEL).write_text(json.dumps({"config": asdict(model), "spec": asdict(spec)}, indent=2) + "\n")
    weights = Trainer(config, generator, prepared, catalog, out).run(progress or Progress())
    generator.load_state_dict(torch.load(weights, weights_only=True))
    plot_curves(out)
    return TrainedGenerator(generator=generator.cpu().eval(), catalog=catalog)


def _generator(
    model: ModelConfig, spec: GeneratorSpec, catalog: TrainingCatalog, embedding_NE: npt.NDArray[np.floating] | None
) -> Generator:
    """With random weights; without embeddings their places are empty, to be loaded."""
    if model.item_vector_width == 0:
        return Generator(model, spec)
    num_items = catalog.snapshot.num_items
    by_item_NE = np.zeros((num_items, spec.embedding_width)) if embedding_NE is None else embedding_NE
    items = ItemVectors(
        model.item_vector_width,
        torch.from_numpy(by_item_NE[catalog.item_of_row_N].astype(np.float32)),
        torch.from_numpy(catalog.snapshot.popularity_N > 0),
        TriePaths.of(catalog.snapshot, torch.device("cpu")),
    )
    return Generator(model, spec, items)


def plot_curves(out: Path) -> None:
    """Draws `metrics.jsonl` by epoch into `curves.png`: losses, validation ranking, load of the experts."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  (after the backend is chosen)

    rows = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    epochs = [row["epoch"] + 1 for row in rows]
    panels = [panel for panel in _panels(set(rows[0])) if panel[1]]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), layout="constrained", squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels, strict=True):
        for name, label in lines.items():
            axis.plot(epochs, [row[name] for row in rows], label=label)
        axis.set(xlabel="epoch", ylabel=title)
        axis.legend()
    figure.savefig(out / "curves.png", dpi=120)
    plt.close(figure)


def _panels(measured: set[str]) -> list[tuple[str, dict[str, str]]]:
    """Per panel its title, and of its metrics those that were measured with their labels."""
    loads = sorted(name for name in measured if name.startswith("expert_max_load_"))
    panels = [
        ("cross-entropy of a code", {"loss": "train", "valid_loss": "valid"}),
        (
            "validation, first item",
            {
                "valid_ndcg_10": "NDCG@10",
                "valid_recall_10": "Recall@10",
                "valid_new_user_recall_10": "Recall@10 without history",
            },
        ),
        (
            "busiest expert's load over the mean",
            {name: f"decoder layer {int(name.rsplit('_', 1)[1]) + 1}" for name in loads},
        ),
    ]
    return [(title, {name: label for name, label in lines.items() if name in measured}) for title, lines in panels]
