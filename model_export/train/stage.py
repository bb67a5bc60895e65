"""The stage `train`: from a prepared data set and sids to the weights of a generator."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch

from model_export.data import PreparedData
from model_export.model import Generator, GeneratorSpec, ModelConfig
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
        generator = Generator(ModelConfig(**model["config"]), GeneratorSpec(**spec))
        generator.load_state_dict(torch.load(out / WEIGHTS, weights_only=True, map_location="cpu"))
        return cls(generator=generator.eval(), catalog=TrainingCatalog.build(prepared, sids_NL))


def train(
    config: TrainConfig,
    model: ModelConfig,
    prepared: PreparedData,
    sids_NL: npt.NDArray[np.int32],
    codebook_sizes: tuple[int, ...],
    out: Path,
    progress: Progress | None = None,
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
    """
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    catalog = TrainingCatalog.build(prepared, sids_NL)
    spec = GeneratorSpec(
        codebook_sizes=codebook_sizes,
        slate_size=prepared.slate_size,
        history_length=config.history_length,
        value_edges=tuple(action.value_edges for action in prepared.actions),
        has_times=prepared.has_times,
    )
    generator = Generator(model, spec).to(device)
    out.mkdir(parents=True, exist_ok=True)
    (out / MODEL).write_text(json.dumps({"config": asdict(model), "spec": asdict(spec)}, indent=2) + "\n")
    weights = Trainer(config, generator, prepared, catalog, out).run(progress or Progress())
    generator.load_state_dict(torch.load(weights, weights_only=True))
    plot_curves(out)
    return TrainedGenerator(generator=generator.cpu().eval(), catalog=catalog)


def plot_curves(out: Path) -> None:
    """Draws losses and validation NDCG@10 by epoch from `metrics.jsonl` into `curves.png`."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  (after the backend is chosen)

    rows = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    epochs = [row["epoch"] + 1 for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(epochs, [row["loss"] for row in rows], label="train")
    if rows and "valid_loss" in rows[0]:
        left.plot(epochs, [row["valid_loss"] for row in rows], label="valid")
        right.plot(epochs, [row["valid_ndcg_10"] for row in rows], label="NDCG@10")
        right.plot(epochs, [row["valid_recall_10"] for row in rows], label="Recall@10")
        right.legend()
    left.set(xlabel="epoch", ylabel="cross-entropy of a code")
    left.legend()
    right.set(xlabel="epoch", ylabel="validation, first item")
    figure.savefig(out / "curves.png", dpi=120)
    plt.close(figure)
