"""Plans of trials: TOML files that say which models are compared, on what, and with how much effort each."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from service.errors import OneSlateError

PLANS = Path(__file__).parent / "plans"
MAX_TRIALS = 8
Tables = dict[str, dict[str, Any]]
"""Values by table and key, as a recipe has them."""


class PlanError(OneSlateError, ValueError):
    """A plan cannot be read, or says what cannot be."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPlan(_Strict):
    """One model: what all its trials share, and in what they differ."""

    kind: str
    """A name of `model_export.trials.kinds.KINDS`."""
    settings: Tables = {}
    """Tables that win over the recipe in every trial of this model."""
    grid: list[Tables] = []
    """One entry a trial: tables that win over `settings`. Empty: one trial."""

    def trial(self, place: int) -> Tables:
        """The tables of a trial."""
        return merged(self.settings, self.grid[place] if self.grid else {})

    @property
    def num_trials(self) -> int:
        return max(1, len(self.grid))


class TrialsPlan(_Strict):
    """What is compared, and how."""

    name: str
    """Of the file."""
    purpose: str
    """What the plan is for, in a line."""
    recipe: str = "default"
    """Where every model's tables start."""
    measure: Annotated[str, Field(pattern="^(item|slate)/.+$")] = "item/ndcg@10"
    """Level and metric on validation that choose a model's setting; the higher the better."""
    subject: str
    """The model that is compared with all others."""
    num_trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = MAX_TRIALS
    """Settings of every model that has settings."""
    max_cpu_hours: Annotated[float, Field(gt=0)]
    """Process time of all trials of one model; beyond it the model's search stops."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]
    """Of the fits behind the test figures; the first one is the seed of every trial."""
    refit: bool = True
    """Whether the fits behind the test figures see validation data; false where published figures did not,
    and where a kind cannot do without validation (alignment)."""
    prepare: dict[str, Any] = {}
    """Values of the recipe's table `[prepare]`."""
    evaluate: dict[str, Any] = {}
    """Values of the recipe's table `[evaluate]`; `splits` is not the plan's to choose."""
    simulator: dict[str, Any] | None = None
    """Values of the simulator's settings: where this table is, the data come from it, and the truth too."""
    models: Annotated[dict[str, ModelPlan], Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _check(self) -> "TrialsPlan":
        if self.subject not in self.models:
            raise ValueError(f"subject {self.subject!r} is none of the models {', '.join(self.models)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ")
        if "splits" in self.evaluate:
            raise ValueError("evaluate.splits: a plan chooses on valid and reports on test")
        for name, model in self.models.items():
            if name == "oracle":
                raise ValueError("'oracle' is the name of the simulator's own row")
            if model.grid and len(model.grid) != self.num_trials:
                raise ValueError(
                    f"models.{name}.grid has {len(model.grid)} settings, not num_trials = {self.num_trials}"
                )
        return self


def load_plan(name: str | Path) -> TrialsPlan:
    """Reads a plan by its name in `plans/` or by its path.

    Raises:
        PlanError: no such file, or what it says cannot be; the line names file and field.
    """
    path = Path(name) if str(name).endswith(".toml") else PLANS / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in PLANS.glob("*.toml")))
        raise PlanError(f"{path}: no such plan; there are {known}, or give the path of a .toml file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlanError(f"{path}: cannot be read: {error}") from error
    try:
        return TrialsPlan(**{"name": path.stem} | values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise PlanError(f"{path}: {field + ': ' if field else ''}{message}") from error


def merged(base: Tables, over: Tables) -> Tables:
    """The tables of both; single values of `over` win."""
    return {table: {**base.get(table, {}), **over.get(table, {})} for table in {**base, **over}}


def digest(value: Any) -> str:
    """Twelve hex digits over a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
