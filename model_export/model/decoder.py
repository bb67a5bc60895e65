"""The decoder: writes a slate code by code.

Legend: B batch, S codes of the sequence, W beams, N = B * W beams of all requests, T context, H heads, C head width,
A = H * C, D width.
"""

import torch
from torch import Tensor, nn

from model_export.model.attention import Attention
from model_export.model.config import ModelConfig
from model_export.model.experts import feed_forward


class DecoderLayer(nn.Module):
    """Pre-norm self-attention over the codes, cross-attention to the history, mixture of experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.num_heads, config.head_width)
        self.norm_cross = nn.LayerNorm(config.width)
        self.cross_attention = Attention(config.width, config.num_heads, config.head_width)
        self.norm_feed_forward = nn.LayerNorm(config.width)
        self.feed_forward = feed_forward(
            config.width,
            config.feed_forward_width,
            config.num_experts,
            config.num_active_experts,
            has_bias=config.expert_bias_rate > 0,
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSD: Tensor, causal_bias: Tensor, context: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """Teacher forcing: all codes of the slate at once."""
        x_BSD = x_BSD + self.dropout(self.self_attention(self.norm_self(x_BSD), causal_bias))
        x_BSD = x_BSD + self.dropout(self.cross_attention.attend(self.norm_cross(x_BSD), *context, bias))
        out: Tensor = x_BSD + self.dropout(self.feed_forward(self.norm_feed_forward(x_BSD)))
        return out

    def step(
        self, x_ND: Tensor, key_NSHC: Tensor, value_NSHC: Tensor, context: tuple[Tensor, Tensor], bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One code per beam; returns its vector, and keys and values with it appended."""
        out_ND, key_NSHC, value_NSHC = self.self_attention.step(self.norm_self(x_ND), key_NSHC, value_NSHC)
        x_ND = x_ND + out_ND
        x_ND = x_ND + self.cross_attention.attend_flat(self.norm_cross(x_ND), *context, bias)
        return x_ND + self.feed_forward(self.norm_feed_forward(x_ND)), key_NSHC, value_NSHC


class SlateDecoder(nn.Module):
    """The stack of layers; embedding and output tables belong to the generator."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def stack(self) -> list[DecoderLayer]:
        """The layers, as what they are."""
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def context(self, memory_BTD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per layer keys and values [B, H, T, C] of the history, shared by all beams and steps."""
        return [layer.cross_attention.context(memory_BTD) for layer in self.stack()]

    def forward(self, x_BSD: Tensor, context: list[tuple[Tensor, Tensor]], bias: Tensor) -> Tensor:
        """Teacher forcing: maps the embedded codes [B, S, D] to hidden vectors [B, S, D]."""
        length = x_BSD.shape[1]
        causal_bias = torch.full((length, length), -torch.inf, device=x_BSD.device, dtype=bias.dtype).triu(1)
        for layer, layer_context in zip(self.stack(), context, strict=True):
            x_BSD = layer(x_BSD, causal_bias, layer_context, bias)
        out: Tensor = self.norm(x_BSD)
        return out
