"""What nobody under test sees: every user's state at every moment of the log, and what slates are really worth to them.

Shapes: U users, V visits (by user and time), R impressions (by visit and position), B users asked about, P items shown
earlier in the same visit, I items, M interests.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from model_export.data.errors import DataError
from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.data.simulator.behaviour import Behaviour, Memory
from model_export.data.simulator.config import SimulatorConfig
from model_export.data.simulator.items import Int, SimulatedItems
from model_export.data.simulator.scoring import State, TrueScorer
from model_export.data.simulator.users import Interests, Rows, Traits
from model_export.data.simulator.visits import VisitTable

_Kind = TypeVar("_Kind")

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Exposures(Rows):
    """What was shown, by visit and position: what a user's memory is made of."""

    visit_R: Int
    item_R: Int
    time_ms_R: Int
    is_consumed_R: "np.ndarray[tuple[int], np.dtype[np.bool_]]"


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """The simulated world behind a log. `simulate` writes it; `load` reads it."""

    config: SimulatorConfig
    items: SimulatedItems
    traits: Traits
    visits: VisitTable
    exposures: Exposures
    log_sha256: str
    """`log_sha256` of the log that it belongs to."""

    @property
    def behaviour(self) -> Behaviour:
        """How users react here."""
        return Behaviour(self.config, self.items)

    @property
    def user_ids(self) -> list[str]:
        return user_ids(len(self.traits.sensitivity_n))

    def state(self, user_B: Int, time_ms_B: Int) -> State:
        """The state of users (rows) at moments (milliseconds since the log began).

        Interests are those of the visit begun last. Inside a visit, the slate asked about replaces what the log showed
        after the last item consumed before that moment: what was shown until then is the prefix. Between visits the
        memory holds all that was consumed until then.
        """
        visits, exposures = self.visits, self.exposures
        first_visit_B = np.searchsorted(visits.user_V, user_B, side="left")
        visit_B = _last_at(visits.user_V, visits.start_ms_V, user_B, time_ms_B)
        began_B = visit_B >= first_visit_B
        visit_B = np.maximum(visit_B, first_visit_B)
        first_B = np.searchsorted(exposures.visit_R, visit_B, side="left")
        end_B = np.searchsorted(exposures.visit_R, visit_B, side="right")
        lasts_B = began_B & (time_ms_B <= exposures.time_ms_R[end_B - 1])
        prefix_BP = self._prefix(first_B, end_B, np.where(lasts_B, time_ms_B, np.iinfo(np.int64).min))
        oldest_B = np.searchsorted(exposures.visit_R, first_visit_B, side="left")
        newest_B = np.where(began_B, np.where(lasts_B, first_B, end_B), oldest_B)
        interests = Interests(
            topic_nM=visits.topic_VM[visit_B],
            subject_nM=visits.subject_VM[visit_B],
            strength_nM=visits.strength_VM[visit_B],
        )
        return State(
            traits=self.traits.take(user_B),
            interests=interests,
            memory=self._memory(oldest_B, newest_B),
            memory_ms_B=np.where(lasts_B, visits.start_ms_V[visit_B], time_ms_B),
            now_ms_B=time_ms_B,
            prefix_BP=prefix_BP,
        )

    def _prefix(self, first_B: Int, end_B: Int, until_ms_B: Int) -> Int:
        """Items of a visit up to the last one consumed before a moment."""
        exposures = self.exposures
        width = int((end_B - first_B).max(initial=0))
        row_BP = np.minimum(first_B[:, None] + np.arange(width), end_B[:, None] - 1)
        is_row_BP = first_B[:, None] + np.arange(width) < end_B[:, None]
        counts_BP = is_row_BP & exposures.is_consumed_R[row_BP] & (exposures.time_ms_R[row_BP] < until_ms_B[:, None])
        length_B = np.where(counts_BP, np.arange(1, width + 1), 0).max(axis=1, initial=0)
        place_BP = np.arange(width) - (width - length_B)[:, None]
        item_BP = exposures.item_R[np.maximum(first_B[:, None] + place_BP, 0)]
        prefix_BP = np.where(place_BP >= 0, item_BP, -1)
        return prefix_BP[:, width - int(length_B.max(initial=0)) :]

    def _memory(self, oldest_B: Int, newest_B: Int) -> Memory:
        """The memory of the exposures in these ranges."""
        exposures, length_B = self.exposures, newest_B - oldest_B
        place = np.repeat(np.arange(len(length_B)), length_B)
        row = (
            np.repeat(oldest_B, length_B) + np.arange(len(place)) - np.repeat(np.cumsum(length_B) - length_B, length_B)
        )
        is_consumed = exposures.is_consumed_R[row]
        place, row = place[is_consumed], row[is_consumed]
        memory = Memory(self.behaviour, len(length_B))
        memory.add(place, exposures.item_R[row], exposures.time_ms_R[row])
        return memory

    def scorer(self, prepared: PreparedData) -> TrueScorer:
        """Whoever tells the true expected reward of slates for examples of `prepared`.

        `ValueError` where `prepared` holds items or users of another world.
        """
        return TrueScorer(self, prepared)

    def oracle(self, prepared: PreparedData, examples: Examples, k: int) -> Int:
        """Slates `[len(examples), k]` that are near the best possible: see `oracle.search_best`."""
        return self.scorer(prepared).oracle(examples, k)

    def save(self, folder: str | Path) -> None:
        """Write the truth's folder; `truth.json` goes last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "truth.json").unlink(missing_ok=True)
        satiety = pl.DataFrame({"satiety": self.items.satiety_T})
        latent = _frame({f.name: getattr(self.items, f.name) for f in fields(self.items) if f.name != "satiety_T"})
        latent.insert_column(0, pl.Series("item_id", self.items.item_ids)).write_parquet(folder / "items.parquet")
        satiety.write_parquet(folder / "topics.parquet")
        for name, rows in (("users", self.traits), ("visits", self.visits), ("exposures", self.exposures)):
            _frame({field.name: getattr(rows, field.name) for field in fields(rows)}).write_parquet(
                folder / f"{name}.parquet"
            )
        meta = {"format_version": FORMAT_VERSION, "log_sha256": self.log_sha256, "config": asdict(self.config)}
        (folder / "truth.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Truth":
        """Read a folder that `simulate` wrote. `DataError` where it is none, or one of another version."""
        folder = Path(folder)
        try:
            meta: dict[str, Any] = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
            if meta["format_version"] != FORMAT_VERSION:
                raise DataError(f"{folder}: the truth of another version of OneSlate; simulate it again")
            topics = pl.read_parquet(folder / "topics.parquet")
            return cls(
                config=SimulatorConfig(**meta["config"]),
                items=_rows(SimulatedItems, folder / "items.parquet", satiety_T=topics["satiety"].to_numpy()),
                traits=_rows(Traits, folder / "users.parquet"),
                visits=_rows(VisitTable, folder / "visits.parquet"),
                exposures=_rows(Exposures, folder / "exposures.parquet"),
                log_sha256=meta["log_sha256"],
            )
        except (OSError, KeyError, TypeError, json.JSONDecodeError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{folder}: not the truth of a simulated log: {error}") from error


def user_ids(num_users: int) -> list[str]:
    """External ids of the users, by row."""
    return [f"user-{row + 1:06d}" for row in range(num_users)]


def _last_at(user_V: Int, start_ms_V: Int, user_B: Int, time_ms_B: Int) -> Int:
    """The last visit of each user that began by a moment; one before the user's first visit where none did."""
    span_ms = max(int(start_ms_V.max()), int(time_ms_B.max(initial=0))) + 1
    clipped_B = np.maximum(time_ms_B, -1)
    return np.searchsorted(user_V * (span_ms + 1) + start_ms_V + 1, user_B * (span_ms + 1) + clipped_B + 1, "right") - 1


def _frame(columns: dict[str, "np.ndarray[Any, np.dtype[Any]]"]) -> pl.DataFrame:
    """Columns without their shape suffixes; an array of two axes becomes a column of arrays."""
    return pl.DataFrame({name.rpartition("_")[0]: values for name, values in columns.items()})


def _rows(kind: type[_Kind], file: Path, **more: Any) -> _Kind:
    frame = pl.read_parquet(file)
    names = [field.name for field in fields(kind) if field.name not in more]  # type: ignore[arg-type]
    return kind(**{name: frame[name.rpartition("_")[0]].to_numpy(writable=True) for name in names}, **more)
