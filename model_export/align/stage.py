"""The stage `align`: from a trained generator and a scorer to a generator whose slates score higher."""

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import torch

from model_export.align.config import AlignConfig
from model_export.align.curves import plot_alignment
from model_export.align.loop import Aligner
from model_export.data.prepared import PreparedData
from model_export.progress import Progress
from model_export.reward.scorer import SlateScorer
from model_export.train.stage import MODEL, TrainedGenerator


def align(
    config: AlignConfig,
    trained: TrainedGenerator,
    scorer: SlateScorer,
    prepared: PreparedData,
    out: Path,
    progress: Progress | None = None,
    truth: SlateScorer | None = None,
) -> TrainedGenerator:
    """Aligns a copy of the generator, going on from a checkpoint in `out`.

    Args:
        config: How to align.
        trained: The start; it stays as it is.
        scorer: What the slates are to please.
        prepared: The data set; examples of `train` are rolled out, those of `valid` choose the iteration.
        out: Folder for the files of the stage `train` (`TrainedGenerator.load` reads it), checkpoint,
            `metrics.jsonl` and `curves.png`.
        progress: Where to show how far it is.
        truth: A second scorer that is measured and never used: what the slates are really worth.
    """
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = deepcopy(trained.generator).to(device)
    out.mkdir(parents=True, exist_ok=True)
    model = {"config": asdict(generator.config), "spec": asdict(generator.spec)}
    (out / MODEL).write_text(json.dumps(model, indent=2) + "\n")
    policy = TrainedGenerator(generator=generator, catalog=trained.catalog)
    weights = Aligner(config, policy, scorer, prepared, out, truth=truth).run(progress or Progress())
    generator.load_state_dict(torch.load(weights, weights_only=True))
    plot_alignment(out)
    return TrainedGenerator(generator=generator.cpu().eval(), catalog=trained.catalog)
