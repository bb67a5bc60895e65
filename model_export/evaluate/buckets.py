"""Kinds of examples that a report shows apart.

Shapes: E examples, N items.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from model_export.evaluate.sequences import Bool, Int

HISTORY_EDGES = (1, 2, 3, 6, 11, 21, 51)
POPULARITY_EDGES = (1, 5, 20, 100)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Which examples are of a kind."""

    kind: Literal["history length", "target popularity"]
    label: str
    member_E: Bool


def buckets(history_length_E: Int, target_count_E: Int) -> list[Bucket]:
    """Examples by events in the history and by training events of the target; empty kinds are left out.

    A history without events is labelled `empty`, a target without a training event `unseen`.
    """
    found = [
        Bucket(kind="history length", label="empty" if label == "0" else label, member_E=member_E)
        for label, member_E in _ranges(history_length_E, HISTORY_EDGES)
    ]
    found += [
        Bucket(kind="target popularity", label="unseen" if label == "0" else label, member_E=member_E)
        for label, member_E in _ranges(target_count_E, POPULARITY_EDGES)
    ]
    return [bucket for bucket in found if bucket.member_E.any()]


def _ranges(value_E: Int, edges: tuple[int, ...]) -> list[tuple[str, Bool]]:
    place_E = np.searchsorted(edges, value_E, side="right")
    lows, highs = (0, *edges), (*edges, None)
    labels = [
        f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}-{high - 1}"
        for low, high in zip(lows, highs, strict=True)
    ]
    return [(label, place_E == place) for place, label in enumerate(labels)]
