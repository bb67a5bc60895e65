"""Histories and next items of examples, as arrays.

Shapes: E examples, T longest sequence, P pairs of (example, item); items are item indexes, -1 pads.
"""

import numpy as np
import numpy.typing as npt

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def histories(prepared: PreparedData, examples: Examples, *, max_length: int) -> Int:
    """The newest `max_length` history items `[E, T]`, oldest first, left aligned, -1 behind."""
    start_E = np.maximum(examples.history_start, examples.history_end - max_length)
    length_E = examples.history_end - start_E
    position_T = np.arange(int(length_E.max(initial=0)))
    is_real_ET = position_T < length_E[:, None]
    index_ET = np.where(is_real_ET, start_E[:, None] + position_T, 0)
    return np.where(is_real_ET, prepared.item_E[index_ET], -1).astype(np.int64)


def first_targets(prepared: PreparedData, examples: Examples) -> Int:
    """The next item `[E]`: the first one of each target, which item-level metrics ask for."""
    return prepared.item_E[examples.target_start].astype(np.int64)


def history_pairs(prepared: PreparedData, examples: Examples) -> tuple[Int, Int, Int]:
    """Whole histories as flat `(example_P, item_P, age_P)`; age 0 is the newest event of a history."""
    length_E = examples.history_end - examples.history_start
    example_P = np.repeat(np.arange(len(length_E)), length_E)
    first_P = np.repeat(np.cumsum(length_E) - length_E, length_E)
    offset_P = np.arange(len(example_P)) - first_P
    event_P = examples.history_start[example_P] + offset_P
    return example_P, prepared.item_E[event_P].astype(np.int64), length_E[example_P] - 1 - offset_P


def excluded_pairs(prepared: PreparedData, examples: Examples) -> tuple[Int, Int]:
    """Flat `(example_P, item_P)` that no list may hold: the histories under the repeat policy `exclude`, else none."""
    if prepared.meta["repeat_policy"] == "allow":
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing
    example_P, item_P, _ = history_pairs(prepared, examples)
    return example_P, item_P


def available(prepared: PreparedData) -> Bool:
    """Which items may be recommended `[N]`."""
    return prepared.items["available"].to_numpy().astype(np.bool_)


def train_counts(prepared: PreparedData) -> Int:
    """Training events of every item `[N]`."""
    return np.bincount(prepared.item_E[prepared.train_events()], minlength=prepared.num_items)
