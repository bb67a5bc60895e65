"""Prepared data sets with feedback, drawn from known rules, for tests of the reward model.

Shapes: E events, M visits, K slate size, N items, L levels.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console

from model_export.data.examples import Examples
from model_export.data.feedback import Feedback
from model_export.data.prepared import PreparedData
from model_export.progress import Progress
from model_export.reward.config import RewardConfig
from model_export.reward.visits import RewardItems

NUM_GROUPS = 3
CODEBOOK_SIZES = (NUM_GROUPS, 8)


def items_of(num_items: int) -> RewardItems:
    """Level 0 of a sid is the item's group, `item % NUM_GROUPS`; level 1 tells the items of a group apart.

    So does the embedding: the group weighs four times as much as the item.
    """
    item_N = np.arange(num_items)
    place_N = item_N // NUM_GROUPS
    return RewardItems(
        sids_NL=np.stack([item_N % NUM_GROUPS, place_N], 1).astype(np.int32),
        codebook_sizes=CODEBOOK_SIZES,
        embedding_NE=np.hstack([2 * np.eye(NUM_GROUPS)[item_N % NUM_GROUPS], np.eye(8)[place_N % 8]]).astype(
            np.float32
        ),
    )


def visits_with_boredom(num_users: int = 300, visits_each: int = 6, slate_size: int = 4, seed: int = 0) -> PreparedData:
    """Users like one of three groups of items; an item is clicked less where its group stands earlier in the slate.

    What a user likes shows in the actions of the history (an event per impression: `like` where it was clicked).
    """
    rng = np.random.default_rng(seed)
    num_items = NUM_GROUPS * 8
    shape = (num_users, visits_each, slate_size)
    item = rng.integers(num_items, size=shape)
    likes = (item % NUM_GROUPS) == rng.integers(NUM_GROUPS, size=(num_users, 1, 1))
    same = (item[..., :, None] % NUM_GROUPS) == (item[..., None, :] % NUM_GROUPS)
    is_bored = (same & np.tri(slate_size, k=-1, dtype=bool)).any(-1)
    logit = np.where(likes, 2.5, -1.0) + np.where(is_bored, -3.0, 0.5)
    click = (rng.random(shape) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    follow = (rng.random(shape) < 0.02).astype(np.float32)
    return prepared_of(item, np.stack([click, follow], -1), num_items)


def prepared_of(item_UVK: npt.NDArray[Any], signal_UVKS: npt.NDArray[np.float32], num_items: int) -> PreparedData:
    """Users with visits an hour apart: the last but one is valid, the last is test; events are the impressions."""
    num_users, num_visits, slate_size = item_UVK.shape
    per_user = num_visits * slate_size
    item_E = item_UVK.reshape(-1).astype(np.int32)
    segment_E = np.repeat(np.arange(num_users), per_user).astype(np.int32)
    visit_E = np.repeat(np.arange(num_users * num_visits), slate_size).astype(np.int32)
    part_V = np.array([0] * (num_visits - 2) + [1, 2], dtype=np.int8)
    part_M = np.tile(part_V, num_users)
    time_M = np.tile(np.arange(num_visits, dtype=np.int64) * 3_600_000 + 1_700_000_000_000, num_users)
    first_M = np.arange(num_users * num_visits, dtype=np.int64) * slate_size
    user_start_M = np.repeat(np.arange(num_users, dtype=np.int64) * per_user, num_visits)
    signals = signal_UVKS.reshape(-1, signal_UVKS.shape[-1])
    feedback = Feedback(
        signals=("click", "follow")[: signals.shape[1]],
        item_F=item_E,
        position_F=np.tile(np.arange(slate_size, dtype=np.int32), num_users * num_visits),
        signal_FS=np.ascontiguousarray(signals),
        visit_F=visit_E,
        segment_M=np.repeat(np.arange(num_users), num_visits).astype(np.int32),
        history_start_M=user_start_M,
        history_end_M=first_M,
        timestamp_ms_M=time_M,
        part_M=part_M,
    )
    is_valid = part_M == 1
    examples = Examples(
        segment=feedback.segment_M.astype(np.int64),
        history_start=user_start_M,
        history_end=first_M,
        target_start=first_M,
        target_end=first_M + slate_size,
    )
    return PreparedData(
        user_id_E=pl.Series([f"u{segment}" for segment in segment_E]),
        item_E=item_E,
        action_E=signals[:, 0].astype(np.int16),
        timestamp_ms_E=time_M[visit_E],
        value_E=np.full(len(item_E), np.nan, np.float32),
        session_E=visit_E,
        segment_E=segment_E,
        part_E=part_M[visit_E],
        items=pl.DataFrame(
            {"item_id": [f"i{n}" for n in range(num_items)], "available": True, "title": "", "text": "", "group": "",
             "tags": [[]] * num_items},
            schema_overrides={"tags": pl.List(pl.String)},
        ),
        splits={"train": examples[part_M == 0], "valid": examples[is_valid], "test": examples[part_M == 2]},
        rejects=pl.DataFrame(),
        meta={
            "slate_size": slate_size,
            "repeat_policy": "allow",
            "has_times": True,
            "actions": [{"name": name, "unit": "", "value_edges": []} for name in ("view", "like")],
        },
        feedback=feedback,
    )  # fmt: skip


def config_of(**values: Any) -> RewardConfig:
    """A model small enough to train in a second or two."""
    small: dict[str, Any] = {
        "width": 16, "num_heads": 2, "head_width": 8, "feed_forward_width": 32, "tower_width": 8, "history_length": 8,
        "batch_size": 64, "learning_rate": 1e-2, "warmup_steps": 10, "max_epochs": 8, "patience": 3, "dropout": 0.0,
        "history_layers": 0, "slate_dropout": 0.1, "signals": ("click",),
    }  # fmt: skip
    return RewardConfig(**{**small, **values})


def quiet() -> Progress:
    return Progress(Console(file=io.StringIO()))


def visits_that_betray_a_mood(num_users: int = 500, visits_each: int = 5, slate_size: int = 4) -> PreparedData:
    """Company tells of the user, and does the opposite: a visit's mood for one group, which no history shows, is known
    to the feed, which then shows more of that group; but each earlier item of the group takes from a later one."""
    rng = np.random.default_rng(0)
    num_items = NUM_GROUPS * 8
    shape = (num_users, visits_each, slate_size)
    mood = rng.integers(NUM_GROUPS, size=(num_users, visits_each, 1))
    group = np.where(rng.random(shape) < 0.6, mood, rng.integers(NUM_GROUPS, size=shape))
    item = group + NUM_GROUPS * rng.integers(8, size=shape)
    same = (group[..., :, None] == group[..., None, :]) & np.tri(slate_size, k=-1, dtype=bool)
    logit = np.where(group == mood, 2.0, -2.0) - 1.0 * same.sum(-1)
    click = (rng.random(shape) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    return prepared_of(item, click[..., None], num_items)
