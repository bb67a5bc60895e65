"""Which examples of a split are measured: the same ones for every recommender.

Shapes: E examples.
"""

from dataclasses import dataclass

import numpy as np

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.evaluate.config import EvaluateConfig
from model_export.evaluate.report import Level
from model_export.evaluate.sequences import Int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The examples of one level, and the user each belongs to."""

    examples: Examples
    user_E: Int


def draw_samples(config: EvaluateConfig, prepared: PreparedData, split: str) -> dict[Level, Sample]:
    """The item-level and the slate-level examples. `ValueError` where the split has none."""
    examples = prepared.examples(split)
    if len(examples) == 0:
        raise ValueError(f"split {split!r} has no example to evaluate on")
    user_E = prepared.user_id_E.rank("dense").to_numpy().astype(np.int64)
    limits: dict[Level, int | None] = {"item": config.max_item_examples, "slate": config.max_slate_examples}
    samples: dict[Level, Sample] = {}
    for level, limit in limits.items():
        drawn = examples
        if limit is not None and limit < len(examples):
            chosen = np.random.default_rng(config.seed).choice(len(examples), limit, replace=False)
            drawn = examples[np.sort(chosen)]
        samples[level] = Sample(examples=drawn, user_E=user_E[drawn.target_start])
    return samples
