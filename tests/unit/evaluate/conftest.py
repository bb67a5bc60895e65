"""Small prepared data sets, made by hand."""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pytest

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData


def examples_of(bounds: Sequence[tuple[int, int, int, int]]) -> Examples:
    """From rows (segment, history start, target start, target end)."""
    rows = np.array(bounds, dtype=np.int64).reshape(-1, 4)
    return Examples(
        segment=rows[:, 0],
        history_start=rows[:, 1],
        history_end=rows[:, 2],
        target_start=rows[:, 2],
        target_end=rows[:, 3],
    )


def build(
    sequences: Sequence[Sequence[int]],
    num_items: int,
    *,
    held_out: int = 1,
    slate_size: int = 2,
    repeat_policy: str = "allow",
    unavailable: Sequence[int] = (),
    tags: Sequence[Sequence[str]] | None = None,
    embeddings: Sequence[Sequence[float] | None] | None = None,
) -> PreparedData:
    """A segment per sequence: the last `held_out` items are the test target, as many before them the valid one."""
    part, rows, start = [], {"train": [], "valid": [], "test": []}, 0
    for segment, items in enumerate(sequences):
        end, valid, test = start + len(items), start + len(items) - 2 * held_out, start + len(items) - held_out
        part += [0] * (valid - start) + [1] * held_out + [2] * held_out
        rows["train"] += [(segment, start, place, place + 1) for place in range(start + 1, valid)]
        rows["valid"].append((segment, start, valid, test))
        rows["test"].append((segment, start, test, end))
        start = end
    segment_E = np.repeat(np.arange(len(sequences)), [len(items) for items in sequences]).astype(np.int32)
    num_events = len(segment_E)
    return PreparedData(
        user_id_E=pl.Series([f"u{segment}" for segment in segment_E]),
        item_E=np.concatenate([np.array(items) for items in sequences]).astype(np.int32),
        action_E=np.zeros(num_events, np.int16),
        timestamp_ms_E=np.zeros(num_events, np.int64),
        value_E=np.full(num_events, np.nan, np.float32),
        session_E=segment_E,
        segment_E=segment_E,
        part_E=np.array(part, np.int8),
        items=pl.DataFrame(
            {
                "item_id": [f"i{item}" for item in range(num_items)],
                "available": [item not in unavailable for item in range(num_items)],
                "tags": [list(row) for row in tags] if tags else [[]] * num_items,
                "embedding": list(embeddings) if embeddings else [None] * num_items,
            },
            schema={
                "item_id": pl.String,
                "available": pl.Boolean,
                "tags": pl.List(pl.String),
                "embedding": pl.List(pl.Float32),
            },
        ),
        splits={name: examples_of(found) for name, found in rows.items()},
        rejects=pl.DataFrame(),
        meta={
            "format": "table",
            "split": "leave_one_out",
            "target_kind": "next_items",
            "slate_size": slate_size,
            "repeat_policy": repeat_policy,
            "data_sha256": "0" * 64,
        },
    )


@pytest.fixture(scope="session")
def make_prepared() -> Callable[..., PreparedData]:
    return build


@pytest.fixture(scope="session")
def cycle() -> PreparedData:
    """Sixty users walk the cycle 0, 1, ..., 11, 0 from different places; item 12 is popular noise at every start."""
    sequences = [[12, *[(start + step) % 12 for step in range(10)]] for start in range(12) for _ in range(5)]
    return build(sequences, 13)
