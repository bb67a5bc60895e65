"""A batch under the names of a graph's inputs, and a graph's outputs as a runner returns them."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.bundle import Manifest
from service.bundle.manifest import GraphSpec
from service.catalog import CatalogSnapshot
from service.errors import RunnerError
from service.inference.runner import Batch, Decoded

OUTPUTS: Final = ("item_rows", "item_valid", "level_logprobs", "scores")
"""Of every graph; some have more."""
_SEED_BASE: Final = 2011
"""Below every prime of `model_export.search.noise`, so that no two seeds start alike."""
_NUM_SEED_WORDS: Final = 3


def graph_feeds(manifest: Manifest, batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """Every input of the graph that the batch is for.

    Raises:
        RunnerError: the bundle has no such graph, or the graph takes what no batch brings.
    """
    spec = graph_spec(manifest, batch.purpose)
    feeds: dict[str, npt.NDArray[Any]] = {
        "history_codes": batch.history_codes_BTL,
        "history_actions": batch.history_actions_BT,
        "history_ages": batch.history_ages_BT,
        "history_values": batch.history_values_BT,
        "history_lengths": batch.history_lengths_B,
        "excluded_rows": batch.excluded_rows_BX,
        "filter_slots": batch.filter_slots_B,
        "allowed_cumsum": batch.allowed_cumsum_FN,
        "group_limits": batch.group_limits_B,
        "diversities": batch.diversities_B,
        # Only the lengths of these two count. What no request of the batch asks for, caps, shall cost next to nothing.
        "cap_slots": np.zeros(manifest.slate_size if batch.group_limits_B.any() else 1, dtype=np.int32),
        "beam_slots": np.zeros(batch.beam_width, dtype=np.int32),
        "history_rows": batch.history_rows_BT,
        **trie_feeds(batch.catalog),
        **{f"child_vector_{level}": table for level, table in enumerate(batch.catalog.child_vectors)},
    }
    if batch.catalog.embeddings_NE is not None:
        feeds["item_embeddings"] = batch.catalog.embeddings_NE
    if batch.forced_rows_BK is not None:
        feeds["forced_rows"] = batch.forced_rows_BK
    if batch.draws is not None:
        feeds["temperatures"] = batch.draws.temperatures_B
        feeds["seed_words"] = seed_words(batch.draws.seeds_B)
    if missing := [name for name in spec.inputs if name not in feeds]:
        raise RunnerError(f"{spec.file} takes {', '.join(missing)}, which this version does not give")
    return {name: feeds[name] for name in spec.inputs}


def seed_words(seeds_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """The digits [B, 3] of seeds below 2^32: one engine divides integers as float32, and nothing here is that large."""
    digits = [seeds_B // _SEED_BASE**place % _SEED_BASE for place in range(_NUM_SEED_WORDS)]
    return np.stack(digits, axis=1).astype(np.int32)


def graph_spec(manifest: Manifest, purpose: str) -> GraphSpec:
    """What the manifest says of a graph. `RunnerError` where the bundle has none for this purpose."""
    if purpose not in manifest.graphs:
        raise RunnerError(f"this bundle has no graph {purpose!r}: export the model again with this version")
    return manifest.graphs[purpose]


def trie_feeds(catalog: CatalogSnapshot) -> dict[str, npt.NDArray[np.int32]]:
    """The catalog's trie under the graph's input names."""
    feeds = {"sids": catalog.sids_NL}
    trie = catalog.trie
    for level in range(len(trie.child_begin)):
        feeds[f"child_begin_{level}"] = trie.child_begin[level]
        feeds[f"child_code_{level}"] = trie.child_code[level]
        feeds[f"child_row_{level}"] = trie.child_row[level]
        feeds[f"child_group_{level}"] = catalog.child_groups[level]
    return feeds


def decoded(outputs: Mapping[str, npt.NDArray[Any]]) -> Decoded:
    """From a graph's outputs by name."""
    return Decoded(
        item_rows_BWK=outputs["item_rows"],
        item_valid_BWK=outputs["item_valid"],
        level_logprobs_BWKL=outputs["level_logprobs"],
        scores_BW=outputs["scores"],
        item_rewards_BWK=outputs.get("item_rewards"),
        runner_up_codes_BKLR=outputs.get("runner_up_codes"),
        runner_up_logprobs_BKLR=outputs.get("runner_up_logprobs"),
        level_log_propensities_BWKL=outputs.get("level_log_propensities"),
    )
