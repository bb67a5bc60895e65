"""What a training step minimises: the cross-entropy of the targets' codes, session-wise or item-wise.

Legend: B batch, K slate size of the targets, N slates that are written, J items in each of them, L levels, V codes of a
level. Session-wise N = B and J = K; item-wise every item of every target is a slate of its own: J = 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model_export.data.examples import Examples
from model_export.model.generator import Generator, HistoryBatch
from model_export.model.losses import next_code_loss
from model_export.model.trie import TriePaths
from model_export.train.batches import Collator
from model_export.train.config import TargetKind, TrainConfig


@dataclass(frozen=True, kw_only=True)
class CodeLosses:
    """Losses of the codes of N slates."""

    loss_NJL: Tensor
    """Cross-entropy; 0 where the target has ended."""
    weight_NJ: Tensor
    """What each item counts; 0 where the target has ended."""

    @property
    def is_target_NJ(self) -> Tensor:
        """Whether a place holds a target, and not padding."""
        return self.weight_NJ > 0

    def mean(self) -> Tensor:
        """The weighted mean over items of the mean over their codes."""
        return (self.loss_NJL.mean(2) * self.weight_NJ).sum() / self.weight_NJ.sum()


class Objective:
    """The losses of examples; the same (history, item) pairs with the same weights for both kinds of targets."""

    def __init__(self, config: TrainConfig, collator: Collator, paths: TriePaths) -> None:
        self._targets: TargetKind = config.targets
        self._first_item_weight = config.first_item_weight
        self._collator = collator
        self._paths = paths

    def losses(self, generator: Generator, history: HistoryBatch, examples: Examples) -> CodeLosses:
        """Teacher forcing of the examples' targets, given their histories as they are or emptied."""
        rows_BK, codes_BKL = self._collator.targets(examples)
        weight_BK = (rows_BK >= 0).to(torch.float32)
        weight_BK[:, 0] *= self._first_item_weight
        if self._targets == "item":
            owner_N, place_N = (rows_BK >= 0).nonzero(as_tuple=True)
            rows_NJ, codes_NJL, weight_NJ = (
                target[owner_N, place_N].unsqueeze(1) for target in (rows_BK, codes_BKL, weight_BK)
            )
            logits = generator(history, codes_NJL, owner_N)
        else:
            rows_NJ, codes_NJL, weight_NJ = rows_BK, codes_BKL, weight_BK
            logits = generator(history, codes_BKL)
        loss_NJL = next_code_loss(logits, rows_NJ, codes_NJL, self._paths, generator.config.score_mode)
        return CodeLosses(loss_NJL=loss_NJL, weight_NJ=weight_NJ)
