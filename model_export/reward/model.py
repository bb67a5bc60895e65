"""The session reward model (OneRec, arXiv 2502.18965, section 3.3).

Legend: B batch, T history length, W slates of each example, K slate size, Q = W * K items, N = B * W slates, L levels,
H heads, D width, E width of an item embedding, S signals.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.model.attention import MASKED, Attention
from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.experts import FeedForward
from model_export.model.generator import HistoryBatch
from model_export.model.history import EncoderLayer, HistoryEncoder
from model_export.reward.company import Company, CompanyTerm, likeness
from model_export.reward.config import RewardConfig


@dataclass(frozen=True, kw_only=True)
class RewardBatch:
    """Users and the slates shown to them."""

    history: HistoryBatch
    """As the generator reads it."""
    history_embeddings_BTE: Tensor
    """The tokenizer's embedding of each event's item; of padding anything."""
    codes_BWKL: Tensor
    """The slates, codes as in histories: code c of a sid as c + 2, 0 after the end of a slate."""
    embeddings_BWKE: Tensor
    """The tokenizer's embedding of each item of the slates; after the end anything."""


class TargetLayer(nn.Module):
    """Target attention: each item of the slate attends to the history; then a feed-forward. Pre-norm.

    How many first codes of its sid an event's item shares with the item is added to the logits, by a learned number
    per head that starts at 1 per code, and so is the cosine of their embeddings, by one that starts at 0: events of
    like items weigh more from the start, and what the user did with them need not be found code by code.
    """

    def __init__(self, config: ModelConfig, num_levels: int) -> None:
        super().__init__()
        self.affinity = nn.Embedding(num_levels + 1, config.num_heads)
        with torch.no_grad():
            self.affinity.weight.copy_(torch.arange(num_levels + 1.0).unsqueeze(1).expand(-1, config.num_heads))
        self.likeness_H = nn.Parameter(torch.zeros(config.num_heads))
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads, config.head_width)
        self.norm_feed_forward = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BQD: Tensor, memory_BTD: Tensor, bias: Tensor, shared_BQT: Tensor, cosine_BQT: Tensor
    ) -> Tensor:
        """Maps the items [B, Q, D] of all slates of an example to [B, Q, D]."""
        bias = bias + self.affinity(shared_BQT).permute(0, 3, 1, 2)
        # A cosine is small beside a logit: times 8 its number learns as fast as that of the codes.
        bias = bias + 8 * cosine_BQT.unsqueeze(1) * self.likeness_H[:, None, None]
        context = self.attention.context(memory_BTD)
        x_BQD = x_BQD + self.dropout(self.attention.attend(self.norm_attention(x_BQD), *context, bias))
        out: Tensor = x_BQD + self.dropout(self.feed_forward(self.norm_feed_forward(x_BQD)))
        return out


class RewardModel(nn.Module):
    """Per item of a slate and signal the chance that the user gives it, seeing the whole slate.

    Target attention of every item to the history, self-attention across the items, one tower per signal. OneRec
    pools the items' vectors before the towers, because its signals are of the session; here signals are of items, so
    that the towers come first and the pool is the sum of the expected signals.

    With `scope` `item` an item sees itself alone, and with `position` not even that: same layers, less input. With
    `residual` everything but a term on the logits is a model of scope `item`, which does not learn.
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
        self.register_buffer("centre_E", torch.zeros(spec.embedding_width))
        self.centre_E: Tensor
        self.content = nn.Linear(spec.embedding_width, config.width, bias=False) if self.history else None
        self.company: Company | CompanyTerm | None = None
        if config.scope == "session":
            self.company = (CompanyTerm if config.residual else Company)(config, spec.slate_size, len(weight_S))
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
        if self.history is None or self.content is None:
            return
        nn.init.normal_(self.content.weight, std=0.02)
        embedding = self.history.embedding
        for table in (embedding.action, embedding.place, embedding.age, embedding.value, *embedding.codes):
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, batch: RewardBatch) -> Tensor:
        """Uncalibrated logits [B, W, K, S]; some number where a slate has ended."""
        num_examples, num_slates, slate_size = batch.codes_BWKL.shape[:3]
        unit_BWKE = self._unit(batch.embeddings_BWKE)
        x_BWKD = self.position.weight[:slate_size].expand(num_examples, num_slates, -1, -1)
        if self.history is not None and self.content is not None:
            x_BQD = self._attend(batch, x_BWKD + self.content(unit_BWKE), unit_BWKE)
        else:
            x_BQD = self.dropout(x_BWKD.flatten(1, 2))
        x_NKD = x_BQD.unflatten(1, (num_slates, slate_size)).flatten(0, 1)
        codes_NKL = batch.codes_BWKL.flatten(0, 1)
        is_seen_NKK, is_company_NKK = self._is_seen(codes_NKL)
        attends_NKK = is_seen_NKK
        likeness_NKK = torch.zeros_like(is_seen_NKK, dtype=torch.int64)
        if self.company is not None:
            likeness_NKK = likeness(unit_BWKE.flatten(0, 1))
        if isinstance(self.company, Company):
            x_NKD = x_NKD + self.company.effects(likeness_NKK, is_seen_NKK)
        elif isinstance(self.company, CompanyTerm):
            attends_NKK = torch.eye(slate_size, dtype=torch.bool, device=is_seen_NKK.device).expand_as(is_seen_NKK)
        bias = (~attends_NKK).unsqueeze(1).to(x_NKD.dtype) * MASKED
        for layer in self.slate:
            x_NKD = layer(x_NKD, bias)
        x_NKD = self.norm(x_NKD)
        logits_NKS = torch.cat([tower(x_NKD) for tower in self.towers], -1)
        if isinstance(self.company, CompanyTerm):
            logits_NKS = logits_NKS + self.company(x_NKD, logits_NKS, likeness_NKK, is_seen_NKK)
        elif self.company is not None and self.training and self.config.absorbs_context:
            logits_NKS = logits_NKS + self.company.contexts(likeness_NKK, is_company_NKK)
        logits_BWKS: Tensor = logits_NKS.unflatten(0, (num_examples, num_slates))
        return logits_BWKS

    def start_from(self, items: "RewardModel") -> None:
        """Takes the weights of a model of single items, which then learn no more (`RewardConfig.residual`)."""
        assert isinstance(self.company, CompanyTerm)
        assert items.config.scope == "item"
        own = ("weight_S", "scale_S", "shift_S")  # what rewards are made of is not learned from it
        state = {name: value for name, value in items.state_dict().items() if name not in own}
        found = self.load_state_dict(state, strict=False)
        assert not found.unexpected_keys
        assert all(name in own or name.startswith("company.") for name in found.missing_keys)
        self.requires_grad_(False)
        self.company.requires_grad_(True)

    def train(self, mode: bool = True) -> "RewardModel":
        """As of every module; layers that learn no more drop nothing either."""
        super().train(mode)
        if mode and isinstance(self.company, CompanyTerm):
            for child in self.children():
                child.train(child is self.company)
        return self

    def _unit(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings - self.centre_E, dim=-1)

    def _attend(self, batch: RewardBatch, x_BWKD: Tensor, unit_BWKE: Tensor) -> Tensor:
        """The items [B, Q, D] of the slates, each after its attention to the history."""
        assert self.history is not None
        assert self.content is not None
        history = batch.history
        for level, table in enumerate(self.history.embedding.codes):
            x_BWKD = x_BWKD + table(batch.codes_BWKL[..., level])
        x_BQD: Tensor = self.dropout(x_BWKD.flatten(1, 2))
        unit_BTE = self._unit(batch.history_embeddings_BTE)
        memory_BTD, bias = self.history(*history.as_args(), self.content(unit_BTE))
        # The context starts with a place that is no event and shares nothing.
        shared_BQT = F.pad(shared_codes(batch.codes_BWKL.flatten(1, 2), history.codes_BTL), (1, 0))
        cosine_BQT = F.pad(unit_BWKE.flatten(1, 2) @ unit_BTE.transpose(1, 2), (1, 0))
        for layer in self.target:
            x_BQD = layer(x_BQD, memory_BTD, bias, shared_BQT, cosine_BQT)
        return x_BQD

    def calibrated(self, logits_BWKS: Tensor) -> Tensor:
        """Chances [..., S] of logits [..., S]."""
        return torch.sigmoid(logits_BWKS * self.scale_S + self.shift_S)

    def chances(self, batch: RewardBatch) -> Tensor:
        """Calibrated chances [B, W, K, S]; 0 where a slate has ended."""
        is_shown_BWK = (batch.codes_BWKL[..., 0] > 0).to(self.weight_S.dtype)
        return self.calibrated(self(batch)) * is_shown_BWK.unsqueeze(-1)

    def expectations(self, batch: RewardBatch) -> tuple[Tensor, Tensor]:
        """The reward [B, W] of slates, and how often each signal is expected in each of them [B, W, S]."""
        expected_BWS = self.chances(batch).sum(2)
        return (expected_BWS * self.weight_S).sum(-1), expected_BWS

    def item_rewards(self, batch: RewardBatch) -> Tensor:
        """What each item adds to its slate's reward [B, W, K]; 0 where a slate has ended.

        With `causal` an item sees none of those after it, so that the sum over the first few is the reward of the
        slate that ends there.
        """
        return (self.chances(batch) * self.weight_S).sum(-1)

    def _is_seen(self, codes_NKL: Tensor) -> tuple[Tensor, Tensor]:
        """Whether item k may see item j [N, K, K], every item itself; and whether j is company for the context."""
        place_K = torch.arange(codes_NKL.shape[1], device=codes_NKL.device)
        is_self_KK = place_K.unsqueeze(1) == place_K
        is_shown_NK = codes_NKL[..., 0] > 0
        if self.config.scope != "session":
            is_seen_NKK = is_self_KK & torch.ones_like(is_shown_NK).unsqueeze(1)
            return is_seen_NKK, is_seen_NKK
        is_seen_NKK = is_shown_NK.unsqueeze(1) | is_self_KK
        if self.training and self.config.slate_dropout > 0 and not self.config.residual:
            keeps_N = torch.rand(len(codes_NKL), device=codes_NKL.device) >= self.config.slate_dropout
            is_seen_NKK = is_seen_NKK & (keeps_N[:, None, None] | is_self_KK)
        is_before_KK = place_K <= place_K.unsqueeze(1)
        return (is_seen_NKK & is_before_KK if self.config.causal else is_seen_NKK), is_seen_NKK


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
