"""What preference training minimises.

Legend: B examples, W slates of each, N = B * W, P groups, S slates of a group, K slate size, L levels, D width.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from model_export.align.config import AlignConfig
from model_export.model.generator import Generator, HistoryBatch
from model_export.model.losses import next_code_loss
from model_export.model.trie import TriePaths

CHOSEN, REJECTED = range(2)
_EPSILON = 1e-6
_MAX_LOG_RATIO = 20.0
"""Far beyond any clip; an infinite ratio would make NaN of the gradient and leave the loss finite."""


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
class SlateGroups:
    """The slates [P, S] of groups: each group holds slates that the reference wrote for one example."""

    policy_PS: Tensor
    """Logprobs under the policy, with gradients."""
    reference_PS: Tensor
    """Logprobs under the weights that wrote them, at temperature 1, whatever the candidates were drawn with."""
    reward_PS: Tensor
    """Rewards; NaN: there is no slate."""

    @property
    def shift_PS(self) -> Tensor:
        """How much likelier the policy finds the slates than the reference does, in nats."""
        return self.policy_PS - self.reference_PS


class PreferenceLoss(Protocol):
    """Any loss over groups of slates."""

    def __call__(self, groups: SlateGroups) -> Tensor:
        """One value for each group, [P]."""
        ...


@dataclass(frozen=True)
class DpoLoss:
    """-log sigmoid(beta x margin) of a pair: Rafailov et al. 2023 (arXiv 2305.18290), equation 7.

    A group holds two slates, the better one first.
    """

    beta: float

    def __call__(self, groups: SlateGroups) -> Tensor:
        """One value for each pair, [P]."""
        return -F.logsigmoid(self.beta * (groups.shift_PS[:, CHOSEN] - groups.shift_PS[:, REJECTED]))


@dataclass(frozen=True)
class GroupLoss:
    """The clipped policy gradient of a group: GRPO (Shao et al. 2024, arXiv 2402.03300, equation 3), and with
    `early_clip` ECPO (OneRec Technical Report, arXiv 2506.13695, "Early-Clipped GRPO").

    One ratio of policy to reference for a whole slate, as ECPO has it, where GRPO has one for each token; and no KL
    term, for next-token prediction beside it holds the policy. A slate's advantage is its reward less the group's mean,
    over the group's standard deviation. The ratio is clipped to [1 - clip, 1 + clip] where the policy moves as the
    advantage says; with a clip of 1 or more, making a bad slate unlikelier has no bound. Where the policy has made a
    bad slate likelier, GRPO leaves the ratio as it is, and ECPO holds it, and so the gradient, below 1 + clip +
    early_clip.
    """

    clip: float
    early_clip: float | None = None

    def __call__(self, groups: SlateGroups) -> Tensor:
        """One value for each group, [P]: the mean over its slates."""
        is_slate_PS = ~groups.reward_PS.isnan()
        advantage_PS = group_advantages(groups.reward_PS)
        reference_PS = groups.reference_PS
        if self.early_clip is not None:
            nearest_PS = groups.policy_PS.detach() - math.log(1 + self.clip + self.early_clip)
            reference_PS = torch.where(advantage_PS < 0, torch.maximum(reference_PS, nearest_PS), reference_PS)
        ratio_PS = (groups.policy_PS - reference_PS).clamp(max=_MAX_LOG_RATIO).exp()
        bounded_PS = ratio_PS.clamp(1 - self.clip, 1 + self.clip)
        gain_PS = torch.minimum(ratio_PS * advantage_PS, bounded_PS * advantage_PS)
        return -gain_PS.masked_fill(~is_slate_PS, 0.0).sum(1) / is_slate_PS.sum(1).clamp(min=1)


def group_advantages(reward_PS: Tensor) -> Tensor:
    """Rewards [P, S] standardised within their group; 0 where there is no slate (NaN)."""
    centred_PS = reward_PS - reward_PS.nanmean(1, keepdim=True)
    deviation_P1 = centred_PS.square().nanmean(1, keepdim=True).sqrt()
    return (centred_PS / (deviation_P1 + _EPSILON)).nan_to_num(0.0)


def preference_loss(config: AlignConfig) -> PreferenceLoss:
    """The loss that a configuration asks for."""
    match config.objective:
        case "dpo":
            return DpoLoss(config.beta)
        case "grpo":
            return GroupLoss(config.clip)
        case "ecpo":
            return GroupLoss(config.clip, config.early_clip)


def best_and_worst(reward_PS: Tensor) -> Tensor:
    """Places [P, 2] of each group's slates of the highest and the lowest reward; NaN is neither."""
    is_none_PS = reward_PS.isnan()
    best_P = reward_PS.masked_fill(is_none_PS, -math.inf).argmax(1)
    worst_P = reward_PS.masked_fill(is_none_PS, math.inf).argmin(1)
    return torch.stack([best_P, worst_P], 1)


def preference_figures(groups: SlateGroups) -> dict[str, float]:
    """What to watch of each group's best slate (`chosen`) and its worst (`rejected`), means over the groups.

    `chosen_shift` below 0 is likelihood displacement (Razin et al. 2024, arXiv 2410.08847): the margin grows although
    the chosen slate becomes less likely.
    """
    with torch.no_grad():
        place_P2 = best_and_worst(groups.reward_PS)
        shift_P2 = groups.shift_PS.gather(1, place_P2)
        logprob_2 = groups.policy_PS.gather(1, place_P2).mean(0)
        margin_P = shift_P2[:, CHOSEN] - shift_P2[:, REJECTED]
        return {
            "accuracy": float((margin_P > 0).float().mean()),
            "margin": float(margin_P.mean()),
            "chosen_logprob": float(logprob_2[CHOSEN]),
            "rejected_logprob": float(logprob_2[REJECTED]),
            "chosen_shift": float(shift_P2[:, CHOSEN].mean()),
            "rejected_shift": float(shift_P2[:, REJECTED].mean()),
        }
