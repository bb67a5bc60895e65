"""Multi-head attention in the three forms that the generator needs.

Legend: B batch, Q query positions, T context positions, N beams of all requests, S codes written so far, H heads,
C head width, A = H * C, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -1e9
"""Added to the logits of positions that must not be seen; finite, so that a fully masked row stays a number."""


class Attention(nn.Module):
    """Queries, keys, values and output projection of one attention (Vaswani et al. 2017), without biases."""

    def __init__(self, width: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_width = head_width
        inner = num_heads * head_width
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x_BQD: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
        """Self-attention over whole sequences; `bias` is added to the logits and broadcasts to [B, H, Q, Q]."""
        return self.attend(x_BQD, self._heads(self.key(x_BQD)), self._heads(self.value(x_BQD)), bias, dropout)

    def context(self, memory_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, C] of a context, computed once and shared by everything that attends to it."""
        return self._heads(self.key(memory_BTD)), self._heads(self.value(memory_BTD))

    def attend(self, x_BQD: Tensor, key_BHTC: Tensor, value_BHTC: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
        """Attention of x to a prepared context; `bias` broadcasts to [B, H, Q, T]."""
        if torch.compiler.is_exporting():
            query_BHQC = self._heads(F.linear(x_BQD, self._scaled_query()))
            out_BHQC = _weighted(query_BHQC, key_BHTC, value_BHTC, bias)
        else:
            query_BHQC = self._heads(self.query(x_BQD))
            out_BHQC = F.scaled_dot_product_attention(query_BHQC, key_BHTC, value_BHTC, bias, dropout)
        out: Tensor = self.out(out_BHQC.transpose(1, 2).flatten(2))
        return out

    def attend_flat(self, x_ND: Tensor, key_BHTC: Tensor, value_BHTC: Tensor, bias: Tensor) -> Tensor:
        """As `attend` for the beams [N, D] of all requests: only here do those of a request meet, over one context."""
        query_NA = F.linear(x_ND, self._scaled_query())
        query_BWHC = query_NA.view(key_BHTC.shape[0], -1, self.num_heads, self.head_width)
        out_BHWC = _weighted(query_BWHC.transpose(1, 2), key_BHTC, value_BHTC, bias)
        out: Tensor = self.out(out_BHWC.transpose(1, 2).reshape(query_NA.shape))
        return out

    def _scaled_query(self) -> Tensor:
        """The query's weight, scaled in advance: a graph computes it once, when it is written."""
        weight_AD: Tensor = self.query.weight * self.head_width**-0.5
        return weight_AD

    def step(self, x_ND: Tensor, key_NSHC: Tensor, value_NSHC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One new code per beam attends to the beam's own codes, itself included.

        The suffix is a handful of codes, so products of numbers beat a thousand tiny matrix products. How they are
        summed up is OpenVINO's choice: over a head by a matrix product with ones, a seventh of the time of a sum, and
        over the codes with the heads side by side. To ONNX Runtime it is all the same.

        Returns:
            The output [N, D], and keys and values with the new code appended.
        """
        heads = (-1, 1, self.num_heads, self.head_width)
        query_N1HC = F.linear(x_ND, self._scaled_query()).view(heads)
        key_NSHC = torch.cat([key_NSHC, self.key(x_ND).view(heads)], 1)
        value_NSHC = torch.cat([value_NSHC, self.value(x_ND).view(heads)], 1)
        weight_NSH = ((query_N1HC * key_NSHC).flatten(2) @ self._sums_of_heads(x_ND)).softmax(1)
        out_NA = (weight_NSH.unsqueeze(3) * value_NSHC).flatten(2).sum(1)
        return self.out(out_NA), key_NSHC, value_NSHC

    def _sums_of_heads(self, like: Tensor) -> Tensor:
        """Ones [A, H] where a column is of the head."""
        heads_HH = torch.eye(self.num_heads, dtype=like.dtype, device=like.device)
        return heads_HH.unsqueeze(1).expand(-1, self.head_width, -1).flatten(0, 1)

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, self.head_width)).transpose(1, 2)
        return heads


def _weighted(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """The values [B, H, Q, C] by scaled queries; spelled out, because the exporter's own form makes two passes more."""
    return (query @ key.transpose(2, 3) + bias).softmax(-1) @ value
