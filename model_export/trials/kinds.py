"""Kinds of models that a plan may name, and what a kind has to offer.

A new kind is a class with `tables`, `has_seeds`, `needs_validation` and `fit`, and an entry in `KINDS`.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from model_export.data.prepared import PreparedData
from model_export.evaluate.recommender import Recommender
from model_export.progress import Progress
from model_export.recipe import Recipe, load_recipe
from model_export.reward.scorer import SlateScorer
from model_export.trials.plan import PlanError, Tables
from model_export.trials.shared import Shared

Config = TypeVar("Config")
RECIPE_TABLES = tuple(field.name for field in dataclasses.fields(Recipe) if field.name not in ("name", "purpose"))


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """One fit: of one model with one setting and one seed."""

    prepared: PreparedData
    """Fitted on its training examples and events; its `valid` may be empty."""
    recipe_name: str
    """Where the tables start."""
    tables: Tables
    """What the plan changes in them."""
    seed: int
    num_epochs: int | None
    """None: choose the epoch on `valid`. Else run the same schedule, stop after so many epochs and keep the last."""
    out: Path
    """Folder of this fit; what is in it already may be gone on with."""
    shared: Shared
    """What several fits need."""
    progress: Progress
    truth: Callable[[], SlateScorer] | None = None
    """Measured, never used: only alignment's curves draw it. Loads it when called; None: there is no simulator."""

    def recipe(self) -> Recipe:
        """The recipe with the plan's tables and the seed. `PlanError` for a value that cannot be."""
        return plan_recipe(self.recipe_name, self.tables, seed=self.seed)

    def table(self, name: str, kind: type[Config]) -> Config:
        """A table that is no recipe's own. `PlanError` for an unknown key or a value that cannot be."""
        return filled(kind, self.tables.get(name, {}), name)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit gives."""

    recommender: Recommender
    num_parameters: int = 0
    """Trained numbers."""
    num_epochs: int | None = None
    """Epochs behind the weights that were kept; None: the model has no epochs."""


class ModelKind(Protocol):
    """A way to fit models."""

    @property
    def tables(self) -> Mapping[str, type | None]:
        """Tables that a plan may set: a recipe's (None), or the kind's own, with the dataclass that each fills."""
        ...

    @property
    def has_seeds(self) -> bool:
        """Whether another seed gives another model."""
        ...

    @property
    def needs_validation(self) -> bool:
        """Whether a fit cannot do without validation examples, so that a plan with it must say `refit = false`."""
        ...

    def fit(self, task: FitTask) -> Fitted:
        """Fits one model, on one thread. `ValueError` where the setting cannot be trained (it diverges, say)."""
        ...


def plan_recipe(name: str, tables: Tables, *, seed: int | None = None, **prepare: Any) -> Recipe:
    """A recipe with the recipe tables among `tables`, and the seed of every model. `PlanError` where it cannot be."""
    settings = [
        f"{table}.{key}={json.dumps(value)}"
        for table, values in tables.items()
        if table in RECIPE_TABLES
        for key, value in values.items()
    ]
    if seed is not None:
        settings += [f"{table}.seed={seed}" for table in ("train", "sasrec", "reward", "align")]
    try:
        return load_recipe(name, settings, **prepare)
    except ValueError as error:
        raise PlanError(f"the plan's tables: {error}") from error


def filled(kind: type[Config], values: Mapping[str, Any], table: str) -> Config:
    """A configuration from a table."""
    assert dataclasses.is_dataclass(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            raise PlanError(f"[{table}]: unknown key {key!r}; {hint}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise PlanError(f"[{table}]: {error}") from error
