"""Prepared data sets made by hand, for tests of training."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from rich.console import Console

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.generator import Generator
from model_export.progress import Progress
from model_export.train.catalog import TrainingCatalog
from model_export.train.config import TrainConfig
from model_export.train.loop import Trainer

MODEL = ModelConfig(
    width=16, num_heads=2, head_width=8, encoder_layers=1, decoder_layers=1, feed_forward_width=32, num_experts=2,
    num_active_experts=1, dropout=0.1,
)  # fmt: skip
Bounds = Sequence[tuple[int, int, int]]
"""History start, target start, target end of each example."""


def examples_of(bounds: Bounds, segment_E: npt.NDArray[np.int32]) -> Examples:
    rows = np.array(bounds, dtype=np.int64).reshape(-1, 3)
    return Examples(
        segment=segment_E[rows[:, 1]].astype(np.int64),
        history_start=rows[:, 0],
        history_end=rows[:, 1],
        target_start=rows[:, 1],
        target_end=rows[:, 2],
    )


def build(
    sequences: Sequence[Sequence[int]],
    num_items: int,
    splits: dict[str, Bounds],
    *,
    slate_size: int = 2,
    **arrays: Any,
) -> PreparedData:
    """A segment per sequence of item indexes; `arrays` replace times, actions and values."""
    segment_E = np.repeat(np.arange(len(sequences)), [len(items) for items in sequences]).astype(np.int32)
    num_events = len(segment_E)
    part_E = np.zeros(num_events, np.int8)
    for part, name in enumerate(("train", "valid", "test")):
        for _, start, end in splits.get(name, ()):
            part_E[start:end] = part
    columns: dict[str, Any] = {
        "timestamp_ms_E": np.arange(num_events, dtype=np.int64) * 60_000,
        "action_E": np.zeros(num_events, np.int16),
        "value_E": np.full(num_events, np.nan, np.float32),
        **arrays,
    }
    return PreparedData(
        user_id_E=pl.Series([f"u{segment}" for segment in segment_E]),
        item_E=np.concatenate([np.array(items) for items in sequences]).astype(np.int32),
        session_E=segment_E,
        segment_E=segment_E,
        part_E=part_E,
        items=pl.DataFrame(
            {"item_id": [f"i{item}" for item in range(num_items)], "available": True, "title": "", "text": "",
             "group": "", "tags": [[]] * num_items},
            schema_overrides={"tags": pl.List(pl.String)},
        ),
        splits={name: examples_of(splits.get(name, ()), segment_E) for name in ("train", "valid", "test")},
        rejects=pl.DataFrame(),
        meta={
            "slate_size": slate_size,
            "repeat_policy": "allow",
            "has_times": True,
            "actions": [
                {"name": "view", "unit": "s", "value_edges": [1.0, 10.0]},
                {"name": "like", "unit": "", "value_edges": []},
            ],
        },
        **columns,
    )  # fmt: skip


def walks(num_items: int, num_users: int, length: int, *, seed: int = 0) -> PreparedData:
    """Users who walk a cycle of items; the last two events of each are for validation, everything before for train."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, num_items, num_users)
    sequences = [[int((start + step) % num_items) for step in range(length)] for start in starts]
    train, valid = [], []
    for user in range(num_users):
        first, end = user * length, (user + 1) * length
        train += [(first, place, min(place + 2, end - 2)) for place in range(first + 1, end - 2)]
        valid.append((first, end - 2, end))
    return build(sequences, num_items, {"train": train, "valid": valid})


def grid_sids(num_items: int, size: int, num_levels: int, *, seed: int = 0) -> npt.NDArray[np.int32]:
    """Distinct sids in random order."""
    numbers = np.random.default_rng(seed).choice(size**num_levels, num_items, replace=False)
    return np.stack(np.unravel_index(numbers, (size,) * num_levels), 1).astype(np.int32)


def config_of(**values: Any) -> TrainConfig:
    return TrainConfig(**{"history_length": 6, "batch_size": 16, "warmup_steps": 2, "valid_beam_width": 10, **values})


def generator_of(prepared: PreparedData, size: int, num_levels: int, model: ModelConfig = MODEL) -> Generator:
    torch.manual_seed(0)
    spec = GeneratorSpec(
        codebook_sizes=(size,) * num_levels, slate_size=prepared.slate_size, history_length=6,
        value_edges=tuple(action.value_edges for action in prepared.actions), has_times=True,
    )  # fmt: skip
    return Generator(model, spec)


def catalog_of(prepared: PreparedData, sids_NL: npt.NDArray[np.int32]) -> TrainingCatalog:
    return TrainingCatalog.build(prepared, sids_NL)


def quiet() -> Progress:
    return Progress(Console(file=io.StringIO()))


def trainer_of(prepared: PreparedData, out: Path, model: ModelConfig = MODEL, **values: Any) -> Trainer:
    """Sids of two levels of four codes."""
    catalog = catalog_of(prepared, grid_sids(prepared.num_items, 4, 2))
    generator = generator_of(prepared, 4, 2, model)
    torch.manual_seed(1)
    return Trainer(config_of(**values), generator, prepared, catalog, out)
