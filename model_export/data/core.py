"""Which events are used at all: by action, by value, and by k-core."""

import polars as pl

from model_export.data.config import PrepareConfig


def filter_events(events: pl.DataFrame, config: PrepareConfig) -> pl.DataFrame:
    """Events that `keep_actions` and `min_value` let through, then their k-core."""
    if config.keep_actions:
        events = events.filter(pl.col("action").is_in(list(config.keep_actions)))
    if config.min_value is not None:
        events = events.filter(pl.col("value") >= config.min_value)
    return k_core(events, min_item_events=config.min_item_events, min_user_events=config.min_user_events)


def k_core(events: pl.DataFrame, *, min_item_events: int, min_user_events: int) -> pl.DataFrame:
    """The largest part of the log in which every item and every user has at least so many events."""
    while True:
        kept = events
        if min_item_events > 1:
            kept = kept.filter(pl.len().over("item_id") >= min_item_events)
        if min_user_events > 1:
            kept = kept.filter(pl.len().over("user_id") >= min_user_events)
        if kept.height == events.height:
            return kept
        events = kept
