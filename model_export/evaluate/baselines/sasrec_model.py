"""SASRec's network: a causal transformer over item ids with tied item embeddings.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018; trained with full-softmax cross-entropy
instead of sampled negatives (Klenitskiy and Vasilev, "Turning Dross Into Gold Loss", RecSys 2023).

Shapes: B batch, T length, D width, H heads, N items, P real positions; item N pads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.evaluate.baselines.sasrec_config import SasRecConfig


class Block(nn.Module):
    """Pre-norm causal self-attention, then a feed-forward, both residual."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.attention_norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward_in = nn.Linear(config.width, config.feed_forward_width)
        self.feed_forward_out = nn.Linear(config.feed_forward_width, config.width)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD + self._drop(self._attend(self.attention_norm(hidden_BTD)))
        inner = F.gelu(self.feed_forward_in(self.feed_forward_norm(hidden_BTD)))
        return hidden_BTD + self._drop(self.feed_forward_out(inner))

    def _attend(self, hidden_BTD: Tensor) -> Tensor:
        batch, length, width = hidden_BTD.shape
        heads = self.query_key_value(hidden_BTD).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query_BHTX, key_BHTX, value_BHTX = heads.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query_BHTX, key_BHTX, value_BHTX, is_causal=True, dropout_p=dropout)
        attended_BTD: Tensor = self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return attended_BTD

    def _drop(self, hidden_BTD: Tensor) -> Tensor:
        return F.dropout(hidden_BTD, self.dropout, self.training)


class SasRecModel(nn.Module):
    """Histories to scores over the catalog.

    Without a temperature a score is a dot product; with one it is the cosine divided by it. `text_ND` gives item
    features for `config.text`: `initialise` starts the item embeddings from them, `project` adds a learned projection
    of them to an embedding of the id.
    """

    text_ND: Tensor | None

    def __init__(self, config: SasRecConfig, num_items: int, text_ND: Tensor | None = None) -> None:
        super().__init__()
        self.config, self.num_items = config, num_items
        self.item_embedding = nn.Embedding(num_items + 1, config.width, padding_idx=num_items)
        self.position_embedding = nn.Parameter(torch.randn(config.max_length, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.item_embedding.weight, std=config.embedding_std)
        self.register_buffer("text_ND", text_ND if config.text == "project" else None, persistent=False)
        self.text_projection: nn.Linear | None = None
        if config.text == "initialise":
            assert text_ND is not None
            self.item_embedding.weight.data[:num_items] = fitted(text_ND, config.width) * config.embedding_std
        elif config.text == "project":
            assert text_ND is not None
            self.text_projection = nn.Linear(text_ND.shape[1], config.width, bias=False)
        self.item_embedding.weight.data[num_items] = 0.0

    def item_vectors(self) -> Tensor:
        """Vectors of the N items and, last, of the padding `[N + 1, D]`."""
        vectors = self.item_embedding.weight
        if self.text_projection is not None and self.text_ND is not None:
            projected_ND = self.text_projection(self.text_ND)
            vectors = vectors + F.pad(projected_ND, (0, 0, 0, 1))
        return vectors

    def forward(self, item_BT: Tensor, vectors: Tensor) -> Tensor:
        """Hidden states `[B, T, D]`; every position sees itself and what is before it, so padding goes behind."""
        hidden_BTD = F.embedding(item_BT, vectors) * math.sqrt(self.config.width)
        hidden_BTD = hidden_BTD + self.position_embedding[: item_BT.shape[1]]
        hidden_BTD = F.dropout(hidden_BTD, self.config.dropout, self.training)
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD)
        normed_BTD: Tensor = self.final_norm(hidden_BTD)
        return normed_BTD

    def logits(self, hidden_PD: Tensor, vectors: Tensor) -> Tensor:
        """Scores of the N items `[P, N]`."""
        item_ND = vectors[: self.num_items]
        if self.config.temperature is None:
            return hidden_PD @ item_ND.T
        return F.normalize(hidden_PD, dim=-1) @ F.normalize(item_ND, dim=-1).T / self.config.temperature


def fitted(feature_ND: Tensor, width: int) -> Tensor:
    """Features brought to `width` columns by their principal axes (zeros where there are fewer).

    Rows get length sqrt(width), so that `embedding_std` sets their scale as it does for random embeddings; a row
    without a feature stays zero.
    """
    centred_ND = feature_ND - feature_ND.mean(dim=0)
    _, _, axes = torch.linalg.svd(centred_ND, full_matrices=False)
    reduced_ND = centred_ND @ axes[:width].T
    reduced_ND = F.pad(reduced_ND, (0, width - reduced_ND.shape[1]))
    return F.normalize(reduced_ND, dim=1) * math.sqrt(width)
