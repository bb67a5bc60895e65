"""From a user history to the context that the decoder reads.

Legend: B batch, T history length, L levels, D width, A actions, N value edges.
"""

import torch
from torch import Tensor, nn

from model_export.model.attention import MASKED, Attention
from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.experts import FeedForward

NUM_TIME_BUCKETS = 32
"""Bucket b holds ages from 2^b - 1 to 2^(b + 1) - 2 seconds; the last one everything older than 68 years."""
NUM_RESERVED_CODES = 2
"""0 pads, 1 is an item that the catalog does not hold; code c of a sid stands as c + 2."""


class HistoryEmbedding(nn.Module):
    """One vector per event: its codes, action, value bucket, age bucket and place counted from the newest."""

    def __init__(self, config: ModelConfig, spec: GeneratorSpec) -> None:
        super().__init__()
        self.history_length = spec.history_length
        self.has_times = spec.has_times
        self.codes = nn.ModuleList(
            nn.Embedding(size + NUM_RESERVED_CODES, config.width) for size in spec.codebook_sizes
        )
        self.action = nn.Embedding(spec.num_actions + 1, config.width)
        self.place = nn.Embedding(spec.history_length, config.width)
        self.age = nn.Embedding(NUM_TIME_BUCKETS, config.width)
        num_edges = max((len(edges) for edges in spec.value_edges), default=0)
        self.num_buckets = num_edges + 2
        """Per action: one for no value, and one more than there are edges."""
        self.value = nn.Embedding((spec.num_actions + 1) * self.num_buckets, config.width)
        edges_AN = torch.full((spec.num_actions + 1, max(num_edges, 1)), torch.inf)
        for number, edges in enumerate(spec.value_edges, start=1):
            edges_AN[number, : len(edges)] = torch.tensor(edges)
        self.register_buffer("edges_AN", edges_AN, persistent=False)
        self.edges_AN: Tensor
        # An infinite value reaches the padding, too, so the count is bounded. NaN, which nothing reaches by IEEE 754,
        # would do without; but OpenVINO says that everything reaches it.
        num_edges_A1 = torch.tensor([0, *map(len, spec.value_edges)]).unsqueeze(1)
        self.register_buffer("num_edges_A1", num_edges_A1, persistent=False)
        self.num_edges_A1: Tensor
        # Compared as integers: a float logarithm falls on either side of a power of two, and differently per runtime.
        age_edges_s = (2 ** torch.arange(1, NUM_TIME_BUCKETS) - 1).to(torch.int32)
        self.register_buffer("age_edges_s", age_edges_s, persistent=False)
        self.age_edges_s: Tensor

    def forward(
        self,
        codes_BTL: Tensor,
        actions_BT: Tensor,
        ages_BT: Tensor,
        values_BT: Tensor,
        lengths_B: Tensor,
        items_BTD: Tensor | None = None,
    ) -> Tensor:
        """Maps histories, oldest first from place 0, to vectors [B, T, D]; padding gets some vector, to be masked.

        `items_BTD`: what else is known of each event's item, added to its codes.
        """
        x_BTD: Tensor = self.action(actions_BT)
        if items_BTD is not None:
            x_BTD = x_BTD + items_BTD
        for level, table in enumerate(self.codes):
            x_BTD = x_BTD + table(codes_BTL[:, :, level])
        # The newest event always has place 0, however the batch is padded.
        place_BT = lengths_B.unsqueeze(1) - 1 - torch.arange(codes_BTL.shape[1], device=codes_BTL.device)
        x_BTD = x_BTD + self.place(place_BT.clamp(0, self.history_length - 1))
        has_value_BT = ~values_BT.isnan()
        above_BTN = values_BT.unsqueeze(-1) >= nn.functional.embedding(actions_BT, self.edges_AN)
        num_edges_BT = nn.functional.embedding(actions_BT, self.num_edges_A1).squeeze(-1)
        num_above_BT = torch.minimum(above_BTN.sum(-1), num_edges_BT)
        bucket_BT = torch.where(has_value_BT, num_above_BT + 1, 0)
        x_BTD = x_BTD + self.value(actions_BT * self.num_buckets + bucket_BT)
        if self.has_times:
            x_BTD = x_BTD + self.age((ages_BT.unsqueeze(-1) >= self.age_edges_s).sum(-1))
        return x_BTD


class HistoryEncoder(nn.Module):
    """Bidirectional pre-norm transformer over the history, after one learned place that is always there.

    The learned place gives users without a history a context to attend to.
    """

    def __init__(self, config: ModelConfig, spec: GeneratorSpec) -> None:
        super().__init__()
        self.embedding = HistoryEmbedding(config, spec)
        self.start_D = nn.Parameter(torch.randn(config.width) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self,
        codes_BTL: Tensor,
        actions_BT: Tensor,
        ages_BT: Tensor,
        values_BT: Tensor,
        lengths_B: Tensor,
        items_BTD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the context [B, T + 1, D] and the bias [B, 1, 1, T + 1] that hides its padding."""
        x_BTD, bias = self.embed(codes_BTL, actions_BT, ages_BT, values_BT, lengths_B, items_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, bias)
        return self.norm(x_BTD), bias

    def embed(
        self,
        codes_BTL: Tensor,
        actions_BT: Tensor,
        ages_BT: Tensor,
        values_BT: Tensor,
        lengths_B: Tensor,
        items_BTD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the layers read: vectors [B, T + 1, D] and the bias [B, 1, 1, T + 1]."""
        x_BTD = self.embedding(codes_BTL, actions_BT, ages_BT, values_BT, lengths_B, items_BTD)
        start = self.start_D.expand(x_BTD.shape[0], 1, -1)
        x_BTD = self.dropout(torch.cat([start, x_BTD], 1))
        place_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        padded_BT = place_T > lengths_B.unsqueeze(1)
        return x_BTD, padded_BT[:, None, None, :].to(x_BTD.dtype) * MASKED


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and dense feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads, config.head_width)
        self.norm_feed_forward = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, bias: Tensor) -> Tensor:
        """Maps [B, T, D] to [B, T, D]."""
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), bias))
        out: Tensor = x_BTD + self.dropout(self.feed_forward(self.norm_feed_forward(x_BTD)))
        return out
