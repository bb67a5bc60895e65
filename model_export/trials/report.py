"""What came out of a plan's trials, as data."""

from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict

from model_export.evaluate.report import Number, Report
from model_export.trials.plan import Tables
from model_export.trials.trial import Status, write_whole

FORMAT_VERSION = 1


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrialReport(_Row):
    """One setting of one model, fitted on train and measured on valid."""

    tables: Tables
    """What its grid changes."""
    status: Status
    value: Number
    """The plan's measure; null where the trial is not done."""
    num_epochs: int | None
    cpu_s: float
    num_parameters: int
    reason: str
    """Why it failed or was stopped."""


class ModelReport(_Row):
    """One model of the plan."""

    name: str
    kind: str
    trials: list[TrialReport]
    chosen: int | None
    """Place of the best trial; null where none is done, and then the model has no test figures."""
    search_cpu_s: float
    """Process time of the trials."""
    refit_cpu_s: float
    """Process time of the fits behind the test figures, one a seed."""
    num_parameters: int
    num_seeds: int

    @property
    def is_stopped(self) -> bool:
        """Whether the cap on CPU time cut its search short."""
        return any(trial.status == "stopped" for trial in self.trials)


class TrialsReport(_Row):
    """The content of `report.json`."""

    format_version: int = FORMAT_VERSION
    plan: dict[str, Any]
    """As read."""
    plan_digest: str
    """Twelve hex digits over the plan and the recipe that it starts from."""
    models: list[ModelReport]
    test: Report
    """The best setting of each model, refitted, on test."""
    log_sha256: str = ""
    """Of the simulated log, which freezes it; empty for a user's own."""

    @property
    def name(self) -> str:
        """Of the plan."""
        return str(self.plan["name"])

    def save(self, out: Path) -> None:
        """Writes `report.json`."""
        write_whole(out / "report.json", self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "TrialsReport":
        """Reads a report from its folder or its `report.json`. `ValueError` with one line where it is none."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such report") from error
        except (pydantic.ValidationError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a report of trials: {str(error).splitlines()[0]}") from error


def report_folder(out: Path, plan: str) -> Path:
    """Where the report of a plan lies in the folder that it was run in."""
    return out / "reports" / plan
