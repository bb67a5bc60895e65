"""The generator as a kind of model: session-wise or item-wise, and how it fills slates."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from model_export.evaluate.generative import GenerativeRecommender, SlateMode
from model_export.recipe import Recipe
from model_export.tokenizer import Tokenization
from model_export.train import TrainedGenerator, train
from model_export.train.loop import METRICS
from model_export.trials.kinds import FitTask, Fitted
from model_export.trials.plan import digest
from model_export.trials.shared import data_digest, locked


@dataclass(frozen=True, kw_only=True)
class SlatesConfig:
    """Table `[slates]`: how a trained generator fills slates."""

    slate_mode: SlateMode | None = None
    """`session`, `items` or `mmr`; default: what fits the generator's targets."""
    mmr_lambda: float | None = None
    """Weight of relevance against dissimilarity, for `mmr`."""


class GeneratorKind:
    """The generator; tables `[model]`, `[train]`, `[tokenize]`, `[export]` (its beam) and `[slates]`.

    Fits that differ in `[slates]` alone share one training; its CPU time counts for the one that made it.
    """

    tables: Mapping[str, type | None] = {
        "model": None, "train": None, "tokenize": None, "export": None, "slates": SlatesConfig,
    }  # fmt: skip
    has_seeds = True

    def fit(self, task: FitTask) -> Fitted:
        """Tokenizes and trains, or takes what another fit has made; goes on from a checkpoint."""
        recipe, settings = task.recipe(), task.table("slates", SlatesConfig)
        tokenization = task.shared.tokenization(recipe.tokenize, task.prepared)
        made_from = [asdict(recipe.model), asdict(recipe.train), asdict(recipe.tokenize), data_digest(task.prepared)]
        folder = task.shared.folder / f"train-{digest([*made_from, task.num_epochs])}"
        with locked(folder.with_suffix(".lock")):
            if not (folder / "done").exists():
                _train(recipe, task, tokenization, folder)
                (folder / "done").touch()
        trained = TrainedGenerator.load(folder, task.prepared, tokenization.sids_NL)
        recommender = GenerativeRecommender(
            trained,
            task.prepared,
            beam_width=recipe.export.beam_width,
            slate_mode=settings.slate_mode,
            embedding_ND=tokenization.embeddings_ND,
            mmr_lambda=settings.mmr_lambda,
        )
        num_parameters = sum(parameter.numel() for parameter in trained.generator.parameters())
        return Fitted(
            recommender=recommender, num_parameters=num_parameters, num_epochs=task.num_epochs or _best_epoch(folder)
        )


def _train(recipe: Recipe, task: FitTask, tokenization: Tokenization, folder: Path) -> None:
    # A refit stops where validation would have: the rate must fall as it did when the epoch was chosen.
    train(
        recipe.train if task.num_epochs is None else replace(recipe.train, stop_epoch=task.num_epochs),
        recipe.model,
        task.prepared,
        tokenization.sids_NL,
        tokenization.codebook_sizes,
        folder,
        task.progress,
        tokenization.embeddings_ND,
    )


def _best_epoch(folder: Path) -> int:
    """Number of epochs, from 1, behind the weights that training kept."""
    rows = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    if "valid_ndcg_10" not in rows[-1]:
        return len(rows)
    return 1 + max(range(len(rows)), key=lambda place: (rows[place]["valid_ndcg_10"], -place))
