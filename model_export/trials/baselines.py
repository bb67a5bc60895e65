"""The baselines as kinds of models."""

from collections.abc import Mapping
from dataclasses import replace

from model_export.evaluate.baselines.content import ContentConfig, ContentNeighbours
from model_export.evaluate.baselines.cooccurrence import Cooccurrence, CooccurrenceConfig
from model_export.evaluate.baselines.popularity import Popularity
from model_export.evaluate.baselines.sasrec import SasRec
from model_export.trials.kinds import FitTask, Fitted


class PopularityKind:
    """The popular list: no settings."""

    tables: Mapping[str, type | None] = {}
    has_seeds = False

    def fit(self, task: FitTask) -> Fitted:
        """Counts."""
        return Fitted(recommender=Popularity(task.prepared))


class CooccurrenceKind:
    """Item-to-item co-occurrence; table `[cooccurrence]`."""

    tables: Mapping[str, type | None] = {"cooccurrence": CooccurrenceConfig}
    has_seeds = False

    def fit(self, task: FitTask) -> Fitted:
        """Counts pairs."""
        return Fitted(recommender=Cooccurrence(task.prepared, task.table("cooccurrence", CooccurrenceConfig)))


class ContentKind:
    """Content neighbours over the text of the items; tables `[content]` and, for the text's embedding, `[tokenize]`."""

    tables: Mapping[str, type | None] = {"content": ContentConfig, "tokenize": None}
    has_seeds = False

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

    def fit(self, task: FitTask) -> Fitted:
        """Trains; its rate is constant after the warm-up, so the number of epochs alone stops a refit."""
        recipe = task.recipe()
        needs_text = recipe.sasrec.text != "none"
        feature_ND = task.shared.embeddings(recipe.tokenize, task.prepared) if needs_text else None
        model = SasRec(task.prepared, recipe.sasrec, feature_ND=feature_ND)
        model.fit(task.progress.console, num_epochs=task.num_epochs)
        return Fitted(recommender=model, num_parameters=model.num_parameters, num_epochs=model.best_epoch)
