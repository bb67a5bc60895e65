"""Actions of a data set: their names, the unit of their value and the value's buckets."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from model_export.data.errors import DataError

MAX_ACTIONS = 255  # a history stores the action in one byte


@dataclass(frozen=True, kw_only=True)
class Action:
    """One kind of event; its place in the list of actions is its number in `events.parquet`."""

    name: str
    unit: str = ""
    """Unit of the raw value (`s`, `stars`); empty: unknown or no value."""
    value_edges: tuple[float, ...] = ()
    """Ascending; a value belongs to bucket `numpy.searchsorted(value_edges, value, side="right")`."""


def name_actions(events: pl.DataFrame) -> list[str]:
    """Names of the actions, most frequent first, ties by name. `DataError` above 255."""
    counts = events["action"].value_counts().sort(["count", "action"], descending=[True, False])
    if counts.height > MAX_ACTIONS:
        raise DataError(f"column 'action' holds {counts.height} different names; at most {MAX_ACTIONS} are possible")
    return [str(name) for name in counts["action"]]


def value_edges(value_E: npt.NDArray[np.float32], num_buckets: int) -> tuple[float, ...]:
    """Quantiles that cut the values that are there into at most `num_buckets` buckets; NaN: no value."""
    values = value_E[~np.isnan(value_E)]
    if len(values) == 0:
        return ()
    cuts = np.unique(np.quantile(values, np.linspace(0, 1, num_buckets + 1)[1:-1], method="nearest"))
    return tuple(float(cut) for cut in cuts if cut > values.min())
