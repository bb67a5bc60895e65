"""Data from the simulator, and the truth behind them, which only the measuring side of the harness sees.

Shapes: E examples, K slate size.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.data.simulator import SimulatorConfig, Truth, simulate
from model_export.evaluate.recommender import Items
from model_export.progress import Progress
from model_export.reward.scorer import SlateScorer
from model_export.trials.kinds import filled
from model_export.trials.plan import PlanError
from model_export.trials.trial import write_whole


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A simulated log and its truth."""

    log: Path
    truth: Truth
    truth_folder: Path
    """Where the truth lies."""

    def scorer(self, prepared: PreparedData) -> SlateScorer:
        """Says what slates are truly worth."""
        return self.truth.scorer(prepared)

    def oracle(self, prepared: PreparedData) -> "Oracle":
        """The best slates there are."""
        return Oracle(self.truth, prepared)


class Oracle:
    """The truth's own slates."""

    name = "oracle"

    def __init__(self, truth: Truth, prepared: PreparedData) -> None:
        self._truth, self._prepared = truth, prepared

    def rank(self, examples: Examples, k: int) -> Items:
        """Empty lists: the best slate says nothing about the next item."""
        return np.full((len(examples), k), -1, dtype=np.int32)

    def slates(self, examples: Examples, k: int) -> Items:
        """The slates of the highest true reward that its search finds."""
        return self._truth.oracle(self._prepared, examples, k).astype(np.int32)


def simulated(settings: dict[str, Any], folder: Path, progress: Progress) -> Simulation:
    """Simulates a log, or takes the one of an earlier run. `PlanError` where that has other settings."""
    config = filled(SimulatorConfig, settings, "simulator")
    marker, made_from = folder / "simulated.json", json.loads(json.dumps(asdict(config)))
    if not marker.exists():
        progress.say("simulate: a log and its truth")
        summary = simulate(config, folder, progress.say)
        progress.say("\n".join(f"  {line}" for line in str(summary).splitlines()))
        write_whole(marker, json.dumps(made_from, indent=2) + "\n")
    elif json.loads(marker.read_text(encoding="utf-8")) != made_from:
        raise PlanError(f"{marker}: simulated with other settings; name another --out")
    truth = folder / "truth"
    return Simulation(log=folder / "log", truth=Truth.load(truth), truth_folder=truth)
