"""Every kind of model that a plan may name."""

import difflib

from model_export.trials.aligned import AlignedKind, BestOfNKind
from model_export.trials.baselines import ContentKind, CooccurrenceKind, PopularityKind, SasRecKind
from model_export.trials.generators import GeneratorKind
from model_export.trials.kinds import ModelKind, filled, plan_recipe
from model_export.trials.plan import PlanError, Tables, TrialsPlan

KINDS: dict[str, ModelKind] = {
    "popularity": PopularityKind(),
    "cooccurrence": CooccurrenceKind(),
    "content": ContentKind(),
    "sasrec": SasRecKind(),
    "generator": GeneratorKind(),
    "aligned": AlignedKind(),
    "best_of_n": BestOfNKind(),
}


def kind_of(name: str) -> ModelKind:
    """A kind by its name. `PlanError` names the nearest."""
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KINDS)}"
        raise PlanError(f"unknown kind {name!r}; {hint}")
    return KINDS[name]


def check_models(plan: TrialsPlan) -> None:
    """Every table of every trial, before hours of work. `PlanError` names model and trial."""
    for name, model in plan.models.items():
        kind = kind_of(model.kind)
        if kind.tables and model.num_trials != plan.num_trials:
            raise PlanError(
                f"models.{name}: {model.num_trials} trials; every model with settings gets {plan.num_trials}"
            )
        if kind.needs_validation and plan.refit:
            raise PlanError(
                f"models.{name}: kind {model.kind} chooses by validation examples, which a refit trains on; "
                "the plan must say refit = false"
            )
        for place in range(model.num_trials):
            tables = model.trial(place)
            try:
                check_tables(kind, tables)
                plan_recipe(plan.recipe, tables)
            except PlanError as error:
                raise PlanError(f"models.{name}, trial {place}: {error}") from error


def check_tables(kind: ModelKind, tables: Tables) -> None:
    """The tables that are no recipe's own. `PlanError` for one that the kind does not read, or an unknown key."""
    for table, values in tables.items():
        if table not in kind.tables:
            raise PlanError(f"[{table}] is none of the tables that this kind reads: {', '.join(kind.tables) or 'none'}")
        config = kind.tables[table]
        if config is not None:
            filled(config, values, table)
