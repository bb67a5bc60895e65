"""What preference training minimises.

Legend: B examples, W slates of each, N = B * W, P pairs, K slate size, L levels, D width.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from model_export.model import Generator, HistoryBatch
from model_export.model.losses import next_code_loss
from model_export.model.trie import TriePaths


def slate_logprobs(
    generator: Generator, history: HistoryBatch, row_BWK: Tensor, sids_NL: Tensor, paths: TriePaths
) -> Tensor:
    """Logprob [B, W] of whole slates under the generator's score mode: the beam search's score, with gradients.

    Each history is encoded once for all of its slates.

    Args:
        generator: In evaluation mode, if its logprobs are to be compared with those of a reference.
        history: B histories.
        row_BWK: Item rows, int64; negative places count nothing.
        sids_NL: The catalog's sids by row.
        paths: Of the same catalog.
    """
    num_slates = row_BWK.shape[1]
    row_NK = row_BWK.flatten(0, 1)
    codes_NKL = sids_NL[row_NK.clamp(min=0)]
    owner_N = torch.arange(len(row_BWK), device=row_BWK.device).repeat_interleave(num_slates)
    logits = generator(history, codes_NKL, owner_N)
    loss_NKL = next_code_loss(logits, row_NK, codes_NKL, paths, generator.config.score_mode)
    return -loss_NKL.sum((1, 2)).view(-1, num_slates)


@dataclass(frozen=True, kw_only=True)
class PairLogprobs:
    """Logprobs [P] of the slates of pairs under policy and reference."""

    chosen_P: Tensor
    rejected_P: Tensor
    reference_chosen_P: Tensor
    reference_rejected_P: Tensor

    @property
    def margin_P(self) -> Tensor:
        """How much more the policy prefers the chosen slate than the reference does, in nats."""
        return (self.chosen_P - self.reference_chosen_P) - (self.rejected_P - self.reference_rejected_P)


class PreferenceLoss(Protocol):
    """Any loss over pairs."""

    def __call__(self, pairs: PairLogprobs) -> Tensor:
        """One value for each pair, [P]."""
        ...


@dataclass(frozen=True)
class DpoLoss:
    """-log sigmoid(beta x margin): Rafailov et al. 2023 (arXiv 2305.18290), equation 7."""

    beta: float

    def __call__(self, pairs: PairLogprobs) -> Tensor:
        """One value for each pair, [P]."""
        return -F.logsigmoid(self.beta * pairs.margin_P)


def preference_figures(pairs: PairLogprobs) -> dict[str, float]:
    """What to watch, means over the pairs.

    `chosen_shift` below 0 is likelihood displacement (Razin et al. 2024, arXiv 2410.08847): the margin grows although
    the chosen slate becomes less likely.
    """
    with torch.no_grad():
        return {
            "accuracy": float((pairs.margin_P > 0).float().mean()),
            "margin": float(pairs.margin_P.mean()),
            "chosen_logprob": float(pairs.chosen_P.mean()),
            "rejected_logprob": float(pairs.rejected_P.mean()),
            "chosen_shift": float((pairs.chosen_P - pairs.reference_chosen_P).mean()),
            "rejected_shift": float((pairs.rejected_P - pairs.reference_rejected_P).mean()),
        }
