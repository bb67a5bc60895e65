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
        query_BHQC = self._heads(self.query(x_BQD))
        if torch.compiler.is_exporting():
            # Spelled out, because the exporter's decomposition scales keys and queries apart: two passes more.
            logits = (query_BHQC * self.head_width**-0.5) @ key_BHTC.transpose(2, 3) + bias
            out_BHQC = logits.softmax(-1) @ value_BHTC
        else:
            out_BHQC = F.scaled_dot_product_attention(query_BHQC, key_BHTC, value_BHTC, bias, dropout)
        out: Tensor = self.out(out_BHQC.transpose(1, 2).flatten(2))
        return out

    def step(self, x_ND: Tensor, key_NSA: Tensor, value_NSA: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One new code per beam attends to the beam's own codes, itself included.

        The suffix is a handful of codes, so products and sums beat a thousand tiny matrix products.

        Returns:
            The output [N, D], and keys and values with the new code appended.
        """
        heads = (self.num_heads, self.head_width)
        query_N1HC = self.query(x_ND).unflatten(-1, heads).unsqueeze(1) * self.head_width**-0.5
        key_NSA = torch.cat([key_NSA, self.key(x_ND).unsqueeze(1)], 1)
        value_NSA = torch.cat([value_NSA, self.value(x_ND).unsqueeze(1)], 1)
        weight_NSH = (query_N1HC * key_NSA.unflatten(-1, heads)).sum(-1).softmax(1)
        out_NHC = (weight_NSH.unsqueeze(-1) * value_NSA.unflatten(-1, heads)).sum(1)
        return self.out(out_NHC.flatten(1)), key_NSA, value_NSA

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, self.head_width)).transpose(1, 2)
        return heads
