"""What an item gains or loses by the other items of its slate.

Legend: N slates, K slate size, D width, E width of an item embedding, S signals, C hidden width of the company term.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.reward.config import RewardConfig

NUM_LIKENESSES = 10
"""Buckets of the cosine of two items, a tenth wide; the first holds everything below .1."""
NUM_EFFECTS = 6
"""Of these, those that an effect tells apart: whatever is alike by more than half counts the same. What is nearly the
same is shown together only where the feed is surest of it, so that a log tells least of it (docs/decisions/0009)."""


def likeness(unit_NKE: Tensor) -> Tensor:
    """Buckets [N, K, K] of the cosines of all pairs of items; embeddings of length 1."""
    cosine_NKK = unit_NKE @ unit_NKE.transpose(1, 2)
    likeness_NKK: Tensor = (cosine_NKK * NUM_LIKENESSES).long().clamp(0, NUM_LIKENESSES - 1)
    return likeness_NKK


class Company(nn.Module):
    """What an item gains or loses by the other items of its slate, by how alike they are: the cosine, in buckets.

    Attention learns only slowly to tell that two items are alike; boredom with the alike is the first thing that a
    session model must know. So each other item that an item sees adds a learned vector to the item's, by the bucket and
    by how far apart the two stand.

    A log shows like items together where the recommender in charge believed that the user likes them, and it shows
    that a user stayed. So company tells of the user as well as it changes what an item is worth, and only the second
    holds for a slate that we choose. What it tells is the same whichever stands first; boredom is not. Hence, with
    `absorbs_context`, numbers that are added to the signals' logits, by the bucket alone, for the items before and
    after: they learn beside the vectors, and are left out when slates are scored.
    """

    def __init__(self, config: RewardConfig, slate_size: int, num_signals: int) -> None:
        super().__init__()
        self.slate_size = slate_size
        self.num_distances = 2 * slate_size - 1
        self.effect = nn.Embedding(NUM_EFFECTS * self.num_distances, config.width)
        nn.init.zeros_(self.effect.weight)
        self.context = nn.Embedding(NUM_LIKENESSES, num_signals) if config.absorbs_context else None
        if self.context is not None:
            nn.init.zeros_(self.context.weight)

    def effects(self, likeness_NKK: Tensor, is_seen_NKK: Tensor) -> Tensor:
        """Vectors [N, K, D] to add to the items'; `is_seen_NKK` says whether item k sees item j, itself included."""
        distance_KK = _distances(likeness_NKK, self.slate_size)
        pair_NKK = likeness_NKK.clamp(max=NUM_EFFECTS - 1) * self.num_distances + distance_KK
        out_NKD: Tensor = (self.effect(pair_NKK) * _others(is_seen_NKK).unsqueeze(-1)).sum(2)
        return out_NKD

    def contexts(self, likeness_NKK: Tensor, is_company_NKK: Tensor) -> Tensor:
        """Logits [N, K, S] to add while training; `is_company_NKK` says whether item j counts for item k."""
        assert self.context is not None
        out_NKS: Tensor = (self.context(likeness_NKK) * _others(is_company_NKK).unsqueeze(-1)).sum(2)
        return out_NKS


class CompanyTerm(nn.Module):
    """Company as a term on the logits of a model of single items (`RewardConfig.residual`), 0 before training.

    Each pair of items has a hidden vector of what the model of single items made of both, their logits, how alike they
    are and how far apart they stand; the sum over an item's company is mapped to the signals. So an item without
    company has the logits of the other model, bit for bit, and whatever this model knows more is company.
    """

    def __init__(self, config: RewardConfig, slate_size: int, num_signals: int) -> None:
        super().__init__()
        self.slate_size = slate_size
        width = config.tower_width
        self.pair = nn.Embedding(NUM_LIKENESSES * (2 * slate_size - 1), width)
        nn.init.zeros_(self.pair.weight)
        self.mine = nn.Linear(config.width + num_signals, width)
        self.others = nn.Linear(config.width + num_signals, width, bias=False)
        self.out = nn.Linear(width, num_signals, bias=False)
        nn.init.zeros_(self.out.weight)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_NKD: Tensor, logits_NKS: Tensor, likeness_NKK: Tensor, is_seen_NKK: Tensor) -> Tensor:
        """The term [N, K, S]; `is_seen_NKK` says whether item k sees item j, itself included."""
        item_NKJ = torch.cat([self.dropout(x_NKD), logits_NKS], -1)
        pair_NKK = likeness_NKK * (2 * self.slate_size - 1) + _distances(likeness_NKK, self.slate_size)
        hidden_NKKC = self.pair(pair_NKK) + self.mine(item_NKJ).unsqueeze(2) + self.others(item_NKJ).unsqueeze(1)
        hidden_NKKC = self.dropout(F.relu(hidden_NKKC))
        out_NKS: Tensor = self.out((hidden_NKKC * _others(is_seen_NKK).unsqueeze(-1)).sum(2))
        return out_NKS


def _distances(likeness_NKK: Tensor, slate_size: int) -> Tensor:
    """How far behind item k item j stands [K, K], from 0."""
    place_K = torch.arange(likeness_NKK.shape[1], device=likeness_NKK.device)
    return place_K - place_K.unsqueeze(1) + slate_size - 1


def _others(is_seen_NKK: Tensor) -> Tensor:
    """The same without the items themselves."""
    place_K = torch.arange(is_seen_NKK.shape[1], device=is_seen_NKK.device)
    return is_seen_NKK & (place_K != place_K.unsqueeze(1))
