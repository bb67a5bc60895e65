"""The session reward model (OneRec, arXiv 2502.18965, section 3.3).

Legend: B batch, T history length, W slates of each example, K slate size, Q = W * K items, N = B * W slates, L levels,
H heads, D width, S signals.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.model import GeneratorSpec, HistoryBatch, ModelConfig
from model_export.model.attention import MASKED, Attention
from model_export.model.experts import FeedForward
from model_export.model.history import EncoderLayer, HistoryEncoder
from model_export.reward.config import RewardConfig


class TargetLayer(nn.Module):
    """Target attention: each item of the slate attends to the history; then a feed-forward. Pre-norm.

    How many first codes of its sid an event's item shares with the item is added to the logits, by a learned number
    per head that starts at 1 per code: events of like items weigh more from the start, and so what the user did with
    them need not be found code by code.
    """

    def __init__(self, config: ModelConfig, num_levels: int) -> None:
        super().__init__()
        self.affinity = nn.Embedding(num_levels + 1, config.num_heads)
        with torch.no_grad():
            self.affinity.weight.copy_(torch.arange(num_levels + 1.0).unsqueeze(1).expand(-1, config.num_heads))
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads, config.head_width)
        self.norm_feed_forward = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BQD: Tensor, memory_BTD: Tensor, bias: Tensor, shared_BQT: Tensor) -> Tensor:
        """Maps the items [B, Q, D] of all slates of an example to [B, Q, D]."""
        bias = bias + self.affinity(shared_BQT).permute(0, 3, 1, 2)
        context = self.attention.context(memory_BTD)
        x_BQD = x_BQD + self.dropout(self.attention.attend(self.norm_attention(x_BQD), *context, bias))
        out: Tensor = x_BQD + self.dropout(self.feed_forward(self.norm_feed_forward(x_BQD)))
        return out


class SlateRelations(nn.Module):
    """What an item gains or loses by its company: one learned vector for each other item of the slate, by how many
    first codes of the sid they share and how far apart they stand, summed.

    Attention learns only slowly to tell that two items are alike; boredom with the alike is the first thing that a
    session model must know.
    """

    def __init__(self, width: int, slate_size: int, num_levels: int) -> None:
        super().__init__()
        self.num_distances = 2 * slate_size - 1
        self.slate_size = slate_size
        self.vectors = nn.Embedding((num_levels + 1) * self.num_distances, width)
        nn.init.zeros_(self.vectors.weight)

    def forward(self, codes_NKL: Tensor, is_seen_NKK: Tensor) -> Tensor:
        """Vectors [N, K, D] to add to the items'; `is_seen_NKK` says whether item k sees item j, itself included."""
        place_K = torch.arange(codes_NKL.shape[1], device=codes_NKL.device)
        distance_KK = place_K - place_K.unsqueeze(1) + self.slate_size - 1
        relation_NKK = shared_codes(codes_NKL, codes_NKL) * self.num_distances + distance_KK
        is_other_NKK = is_seen_NKK & (place_K != place_K.unsqueeze(1))
        out_NKD: Tensor = (self.vectors(relation_NKK) * is_other_NKK.unsqueeze(-1)).sum(2)
        return out_NKD


class RewardModel(nn.Module):
    """Per item of a slate and signal the chance that the user gives it, seeing the whole slate.

    Target attention of every item to the history, self-attention across the items, one tower per signal. OneRec
    pools the items' vectors before the towers, because its signals are of the session; here signals are of items, so
    that the towers come first and the pool is the sum of the expected signals.

    With `scope` `item` an item sees itself alone, and with `position` not even that: same layers, less input.
    """

    def __init__(self, config: RewardConfig, spec: GeneratorSpec, weight_S: tuple[float, ...]) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        layers = config.layers()
        self.history = HistoryEncoder(layers, spec) if config.scope != "position" else None
        self.target = nn.ModuleList(
            TargetLayer(layers, spec.num_levels)
            for _ in range(config.target_layers if config.scope != "position" else 0)
        )
        self.position = nn.Embedding(spec.slate_size, config.width)
        self.relations = (
            SlateRelations(config.width, spec.slate_size, spec.num_levels) if config.scope == "session" else None
        )
        self.slate = nn.ModuleList(EncoderLayer(layers) for _ in range(config.slate_layers))
        self.norm = nn.LayerNorm(config.width)
        self.towers = nn.ModuleList(_tower(config) for _ in weight_S)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("weight_S", torch.tensor(weight_S, dtype=torch.float32))
        self.weight_S: Tensor
        # Platt scaling (Platt 1999), fitted after training: calibrated logit = scale * logit + shift.
        self.register_buffer("scale_S", torch.ones(len(weight_S)))
        self.scale_S: Tensor
        self.register_buffer("shift_S", torch.zeros(len(weight_S)))
        self.shift_S: Tensor
        self._start()

    def _start(self) -> None:
        nn.init.normal_(self.position.weight, std=0.02)
        for layer in self.slate:  # it starts out as a model of single items
            assert isinstance(layer, EncoderLayer)
            nn.init.zeros_(layer.attention.out.weight)
        if self.history is None:
            return
        embedding = self.history.embedding
        for table in (embedding.action, embedding.place, embedding.age, embedding.value, *embedding.codes):
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, history: HistoryBatch, codes_BWKL: Tensor) -> Tensor:
        """Uncalibrated logits [B, W, K, S]; some number where a slate has ended.

        Args:
            history: As the generator reads it.
            codes_BWKL: The slates, codes as in histories: code c of a sid as c + 2, 0 after the end of a slate.
        """
        num_slates, slate_size = codes_BWKL.shape[1:3]
        x_BWKD = self.position.weight[:slate_size].expand(codes_BWKL.shape[0], num_slates, -1, -1)
        if self.history is not None:
            for level, table in enumerate(self.history.embedding.codes):
                x_BWKD = x_BWKD + table(codes_BWKL[..., level])
        x_BQD = self.dropout(x_BWKD.flatten(1, 2))
        if self.history is not None:
            memory_BTD, bias = self.history(
                history.codes_BTL,
                history.actions_BT,
                history.times_BT,
                history.values_BT,
                history.lengths_B,
                history.now_B,
            )
            # The context starts with a place that is no event and shares nothing.
            shared_BQT = F.pad(shared_codes(codes_BWKL.flatten(1, 2), history.codes_BTL), (1, 0))
            for layer in self.target:
                x_BQD = layer(x_BQD, memory_BTD, bias, shared_BQT)
        x_NKD = x_BQD.unflatten(1, (num_slates, slate_size)).flatten(0, 1)
        codes_NKL = codes_BWKL.flatten(0, 1)
        is_seen_NKK = self._is_seen(codes_NKL)
        if self.relations is not None:
            x_NKD = x_NKD + self.relations(codes_NKL, is_seen_NKK)
        bias = (~is_seen_NKK).unsqueeze(1).to(x_NKD.dtype) * MASKED
        for layer in self.slate:
            x_NKD = layer(x_NKD, bias)
        x_NKD = self.norm(x_NKD)
        logits_NKS = torch.cat([tower(x_NKD) for tower in self.towers], -1)
        logits_BWKS: Tensor = logits_NKS.unflatten(0, (codes_BWKL.shape[0], num_slates))
        return logits_BWKS

    def calibrated(self, logits_BWKS: Tensor) -> Tensor:
        """Chances [..., S] of logits [..., S]."""
        return torch.sigmoid(logits_BWKS * self.scale_S + self.shift_S)

    def expectations(self, history: HistoryBatch, codes_BWKL: Tensor) -> tuple[Tensor, Tensor]:
        """The reward [B, W] of slates, and how often each signal is expected in each of them [B, W, S]."""
        is_shown_BWK = (codes_BWKL[..., 0] > 0).to(self.weight_S.dtype)
        chance_BWKS = self.calibrated(self(history, codes_BWKL)) * is_shown_BWK.unsqueeze(-1)
        expected_BWS = chance_BWKS.sum(2)
        return (expected_BWS * self.weight_S).sum(-1), expected_BWS

    def _is_seen(self, codes_NKL: Tensor) -> Tensor:
        """Whether item k may see item j [N, K, K]; every item sees itself."""
        place_K = torch.arange(codes_NKL.shape[1], device=codes_NKL.device)
        is_self_KK = place_K.unsqueeze(1) == place_K
        is_shown_NK = codes_NKL[..., 0] > 0
        if self.config.scope != "session":
            return is_self_KK & torch.ones_like(is_shown_NK).unsqueeze(1)
        is_seen_NKK = is_shown_NK.unsqueeze(1) | is_self_KK
        if self.training and self.config.slate_dropout > 0:
            keeps_N = torch.rand(len(codes_NKL), device=codes_NKL.device) >= self.config.slate_dropout
            is_seen_NKK = is_seen_NKK & (keeps_N[:, None, None] | is_self_KK)
        return is_seen_NKK & (place_K <= place_K.unsqueeze(1)) if self.config.causal else is_seen_NKK


def shared_codes(codes_BQL: Tensor, other_BTL: Tensor) -> Tensor:
    """How many first codes the sids of items and other items share [B, Q, T], 0 to L."""
    is_same = torch.ones((), dtype=torch.bool, device=codes_BQL.device)
    shared = torch.zeros((), dtype=torch.int64, device=codes_BQL.device)
    for level in range(codes_BQL.shape[-1]):
        is_same = is_same & (codes_BQL[:, :, None, level] == other_BTL[:, None, :, level])
        shared = shared + is_same
    return shared


def _tower(config: RewardConfig) -> nn.Module:
    return nn.Sequential(nn.Linear(config.width, config.tower_width), nn.ReLU(), nn.Linear(config.tower_width, 1))
