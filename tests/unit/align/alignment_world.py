"""A small trained generator, and scorers whose taste is known."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from training_data import catalog_of, generator_of, grid_sids, walks

from model_export.align.config import AlignConfig
from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.model.config import ModelConfig
from model_export.train.stage import TrainedGenerator

NUM_ITEMS = 24
SIZE = 4
NUM_LEVELS = 2
MODEL = ModelConfig(
    width=16, num_heads=2, head_width=8, encoder_layers=1, decoder_layers=1, feed_forward_width=32, num_experts=1,
    num_active_experts=1, dropout=0.1,
)  # fmt: skip
SIDS = grid_sids(NUM_ITEMS, SIZE + 2, NUM_LEVELS)


@dataclass(frozen=True)
class Taste:
    """Scores a slate by a function of its items."""

    value: Callable[[npt.NDArray[np.int32]], npt.NDArray[np.float64]]

    def score(self, examples: Examples, item_BWK: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        assert len(examples) == len(item_BWK)
        return self.value(item_BWK).astype(np.float32)


def distinct_codes(item_BWK: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Number of different first codes of a slate."""
    ordered_BWK = np.sort(SIDS[item_BWK, 0], axis=2)
    return 1.0 + (np.diff(ordered_BWK, axis=2) != 0).sum(2)


def large_items(item_BWK: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Share of the items whose index is in the upper half."""
    return np.asarray((item_BWK >= NUM_ITEMS // 2).mean(2))


def world(num_users: int = 40) -> PreparedData:
    return walks(NUM_ITEMS, num_users, 9)


def start(prepared: PreparedData, model: ModelConfig = MODEL) -> TrainedGenerator:
    """A generator with random weights."""
    generator = generator_of(prepared, SIZE + 2, NUM_LEVELS, model)
    return TrainedGenerator(generator=generator.eval(), catalog=catalog_of(prepared, SIDS))


def config_of(**values: Any) -> AlignConfig:
    defaults = {
        "num_iterations": 3, "preference_share": 0.2, "num_candidates": 8, "num_steps": 10, "batch_size": 16,
        "supervised_batch_size": 16, "learning_rate": 3e-3, "num_valid_examples": 40, "valid_beam_width": 10,
        "max_ndcg_drop": 1.0, "max_diversity_drop": 1.0, "patience": 0, "warmup_steps": 2,
    }  # fmt: skip
    return AlignConfig(**{**defaults, **values})
