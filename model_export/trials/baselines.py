"""The baselines as kinds of models."""

from collections.abc import Mapping
from dataclasses import asdict, replace

from model_export.evaluate.baselines.content import ContentConfig, ContentNeighbours
from model_export.evaluate.baselines.cooccurrence import Cooccurrence, CooccurrenceConfig
from model_export.evaluate.baselines.popularity import Popularity
from model_export.evaluate.baselines.sasrec import SasRec
from model_export.trials.kinds import FitTask, Fitted
from model_export.trials.plan import digest
from model_export.trials.shared import data_digest, locked


class PopularityKind:
    """The popular list: no settings."""

    tables: Mapping[str, type | None] = {}
    has_seeds = False
    needs_validation = False

    def fit(self, task: FitTask) -> Fitted:
        """Counts."""
        return Fitted(recommender=Popularity(task.prepared))


class CooccurrenceKind:
    """Item-to-item co-occurrence; table `[cooccurrence]`."""

    tables: Mapping[str, type | None] = {"cooccurrence": CooccurrenceConfig}
    has_seeds = False
    needs_validation = False

    def fit(self, task: FitTask) -> Fitted:
        """Counts pairs."""
        return Fitted(recommender=Cooccurrence(task.prepared, task.table("cooccurrence", CooccurrenceConfig)))


class ContentKind:
    """Content neighbours over the text of the items; tables `[content]` and, for the text's embedding, `[tokenize]`."""

    tables: Mapping[str, type | None] = {"content": ContentConfig, "tokenize": None}
    has_seeds = False
    needs_validation = False

    def fit(self, task: FitTask) -> Fitted:
        """Embeds the items."""
        config = replace(task.recipe().tokenize, source="text")
        feature_ND = task.shared.embeddings(config, task.prepared)
        settings = task.table("content", ContentConfig)
        return Fitted(recommender=ContentNeighbours(task.prepared, settings, feature_ND=feature_ND))


class SasRecKind:
    """SASRec; tables `[sasrec]` and, where it reads text, `[tokenize]` for the items' embedding."""

    tables: Mapping[str, type | None] = {"sasrec": None, "tokenize": None}
    has_seeds = True
    needs_validation = False

    def fit(self, task: FitTask) -> Fitted:
        """Trains, or takes what an equal fit has made; its rate is constant after the warm-up, so the number of epochs
        alone stops a refit."""
        recipe = task.recipe()
        needs_text = recipe.sasrec.text != "none"
        feature_ND = task.shared.embeddings(recipe.tokenize, task.prepared) if needs_text else None
        model = SasRec(task.prepared, recipe.sasrec, feature_ND=feature_ND)
        tokenize = asdict(recipe.tokenize) if needs_text else None
        made_from = [asdict(recipe.sasrec), tokenize, data_digest(task.prepared), task.num_epochs]
        weights = task.shared.folder / f"sasrec-{digest(made_from)}.pt"
        with locked(weights.with_suffix(".lock")):
            if weights.exists():
                model.load(weights)
            else:
                model.fit(task.progress.console, num_epochs=task.num_epochs)
                model.save(weights)
        return Fitted(recommender=model, num_parameters=model.num_parameters, num_epochs=model.best_epoch)
