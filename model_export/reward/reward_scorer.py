"""The reward model as a scorer of slates.

Shapes: B examples, W candidate slates of each, K slate size.
"""

import numpy as np
import numpy.typing as npt
import torch

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.reward.stage import TrainedReward

_SLATES_AT_ONCE = 4096


class RewardScorer:
    """A `SlateScorer`: the expected signals of a slate, weighted and summed."""

    def __init__(self, trained: TrainedReward, prepared: PreparedData) -> None:
        self._model = trained.model
        self._collator = trained.collator(prepared)

    @torch.no_grad()
    def score(self, examples: Examples, item_BWK: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Rewards [B, W]; see `SlateScorer`.

        Raises:
            ValueError: slates longer than the model knows, or as many rows as there are no examples for.
        """
        slate_size = self._model.spec.slate_size
        if len(item_BWK) != len(examples) or item_BWK.shape[2] > slate_size:
            raise ValueError(
                f"{len(examples)} examples need slates [{len(examples)}, W, at most {slate_size}], "
                f"not {list(item_BWK.shape)}"
            )
        at_once = max(1, _SLATES_AT_ONCE // max(1, item_BWK.shape[1]))
        reward_BW = np.zeros(item_BWK.shape[:2], dtype=np.float32)
        for start in range(0, len(examples), at_once):
            part = slice(start, start + at_once)
            rewards, _ = self._model.expectations(self._collator.batch(examples[part], item_BWK[part]))
            reward_BW[part] = rewards.cpu().numpy()
        return reward_BW
