"""`simulate`: the log that anybody may see, and beside it the truth that nobody under test does."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from model_export.data.simulator.behaviour import Behaviour
from model_export.data.simulator.config import SimulatorConfig
from model_export.data.simulator.items import make_items
from model_export.data.simulator.log_files import SIGNALS, log_sha256, write_log
from model_export.data.simulator.truth import Exposures, Truth
from model_export.data.simulator.users import Rows
from model_export.data.simulator.visits import Batch, simulate_batch

BATCH_USERS = 2048
"""Users simulated in step; part of what determines a log."""
_Table = TypeVar("_Table", bound=Rows)


@dataclass(frozen=True, kw_only=True)
class SimulationSummary:
    """What `simulate` wrote."""

    log: Path
    """For `prepare`, format `table`."""
    truth: Path
    """For `Truth.load`."""
    num_users: int
    num_items: int
    num_visits: int
    num_impressions: int
    num_events: int
    signal_shares: dict[str, float]
    """Share of the impressions with each signal."""
    log_sha256: str
    seconds: float

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:.3f}" for name, share in self.signal_shares.items())
        return (
            f"{self.num_events:,} events of {self.num_users:,} users on {self.num_items:,} items in "
            f"{self.num_visits:,} visits ({self.seconds:.1f} s); {self.num_impressions:,} impressions: {shares}\n"
            f"log {self.log_sha256}"
        )


def simulate(
    config: SimulatorConfig, out: str | Path, progress: Callable[[str], None] = lambda _message: None
) -> SimulationSummary:
    """Write `out/log` and `out/truth`. The same configuration gives the same log, whose hash the truth names.

    `progress` receives a line now and then.
    """
    started_s = time.monotonic()
    truth, batch = _live(config, progress)
    log = _write_log(truth, batch, Path(out) / "log")
    digest = log_sha256(log)
    replace(truth, log_sha256=digest).save(Path(out) / "truth")
    impressions = batch.impressions
    return SimulationSummary(
        log=log,
        truth=Path(out) / "truth",
        num_users=config.num_users,
        num_items=config.num_items,
        num_visits=len(truth.visits.user_V),
        num_impressions=len(impressions.click_R),
        num_events=int(impressions.click_R.sum()),
        signal_shares={name: float(getattr(impressions, f"{name}_R").mean()) for name in SIGNALS},
        log_sha256=digest,
        seconds=time.monotonic() - started_s,
    )


def write_simulation(config: SimulatorConfig, folder: str | Path) -> Path:
    """Write the log alone into `folder`, as a user's own would stand there; returns the folder for `prepare`."""
    truth, batch = _live(config, lambda _message: None)
    return _write_log(truth, batch, Path(folder))


def _write_log(truth: Truth, batch: Batch, folder: Path) -> Path:
    write_log(
        folder,
        truth.items,
        batch.visits,
        batch.impressions,
        user_ids=truth.user_ids,
        start_timestamp_s=truth.config.start_timestamp_s,
    )
    return folder


def _live(config: SimulatorConfig, progress: Callable[[str], None]) -> tuple[Truth, Batch]:
    """The whole time of all users. Batches have random numbers of their own."""
    items = make_items(config, np.random.default_rng([config.seed, 0]))
    behaviour = Behaviour(config, items)
    batches: list[Batch] = []
    for number, first in enumerate(range(0, config.num_users, BATCH_USERS), start=1):
        size = min(BATCH_USERS, config.num_users - first)
        batches.append(simulate_batch(behaviour, size, np.random.default_rng([config.seed, number])))
        progress(f"simulated {first + size:,} of {config.num_users:,} users")
    whole = _joined(batches)
    impressions = whole.impressions
    exposures = Exposures(
        visit_R=impressions.visit_R,
        item_R=impressions.item_R,
        time_ms_R=impressions.time_ms_R,
        is_consumed_R=impressions.click_R,
    )
    truth = Truth(
        config=config, items=items, traits=whole.traits, visits=whole.visits, exposures=exposures, log_sha256=""
    )
    return truth, whole


def _joined(batches: list[Batch]) -> Batch:
    """All batches, with users and visits numbered through."""
    users = np.cumsum([0, *(len(batch.traits.sensitivity_n) for batch in batches)])
    visits = np.cumsum([0, *(len(batch.visits.user_V) for batch in batches)])
    numbered_visits = [
        replace(batch.visits, user_V=batch.visits.user_V + first) for batch, first in zip(batches, users, strict=False)
    ]
    numbered_impressions = [
        replace(batch.impressions, visit_R=batch.impressions.visit_R + first)
        for batch, first in zip(batches, visits, strict=False)
    ]
    return Batch(
        traits=_stacked([batch.traits for batch in batches]),
        visits=_stacked(numbered_visits),
        impressions=_stacked(numbered_impressions),
    )


def _stacked(tables: list[_Table]) -> _Table:
    columns: dict[str, Any] = {
        field.name: np.concatenate([getattr(table, field.name) for table in tables]) for field in fields(tables[0])
    }
    return type(tables[0])(**columns)
