"""The generator as a kind of model: session-wise or item-wise, and how it fills slates."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from model_export.evaluate.generative import GenerativeRecommender, SlateMode
from model_export.tokenizer.tokenization import Tokenization
from model_export.train.loop import METRICS
from model_export.train.stage import TrainedGenerator, train
from model_export.trials.kinds import FitTask, Fitted
from model_export.trials.shared import data_digest


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
    needs_validation = False

    def fit(self, task: FitTask) -> Fitted:
        """Takes the shared training and fills slates as asked."""
        settings, training = task.table("slates", SlatesConfig), trained_generator(task)
        recommender = GenerativeRecommender(
            training.trained,
            task.prepared,
            beam_width=task.recipe().export.beam_width,
            slate_mode=settings.slate_mode,
            embedding_ND=training.tokenization.embeddings_ND,
            mmr_lambda=settings.mmr_lambda,
        )
        return Fitted(
            recommender=recommender,
            num_parameters=num_parameters(training.trained.generator),
            num_epochs=training.num_epochs,
        )


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """A trained generator, and what comes with it."""

    folder: Path
    """Its name covers everything that the training was made from."""
    tokenization: Tokenization
    trained: TrainedGenerator
    num_epochs: int
    """Behind the weights that were kept."""


def trained_generator(task: FitTask) -> GeneratorTraining:
    """Tokenizes and trains, or takes what another fit, of whatever kind, has made; goes on from a checkpoint."""
    recipe = task.recipe()
    tokenization = task.shared.tokenization(recipe.tokenize, task.prepared)
    # A refit stops where validation would have: the rate must fall as it did when the epoch was chosen.
    config = recipe.train if task.num_epochs is None else replace(recipe.train, stop_epoch=task.num_epochs)

    def make(out: Path) -> None:
        train(
            config,
            recipe.model,
            task.prepared,
            tokenization.sids_NL,
            tokenization.codebook_sizes,
            out,
            task.progress,
            tokenization.embeddings_ND,
        )

    made_from = [asdict(recipe.model), asdict(recipe.train), asdict(recipe.tokenize), data_digest(task.prepared)]
    folder = task.shared.trained("train", [*made_from, task.num_epochs], make)
    return GeneratorTraining(
        folder=folder,
        tokenization=tokenization,
        trained=TrainedGenerator.load(folder, task.prepared, tokenization.sids_NL),
        num_epochs=task.num_epochs or _best_epoch(folder),
    )


def num_parameters(model: nn.Module) -> int:
    """Trained numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def _best_epoch(folder: Path) -> int:
    """Number of epochs, from 1, behind the weights that training kept."""
    rows = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    if "valid_ndcg_10" not in rows[-1]:
        return len(rows)
    return 1 + max(range(len(rows)), key=lambda place: (rows[place]["valid_ndcg_10"], -place))
