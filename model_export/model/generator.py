"""The session-wise generative recommender: reads a history, writes a slate (OneRec, arXiv 2502.18965).

Legend: B batch, T history length, L levels, K slate size, S = K * L codes, V codes of a level, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.decoder import SlateDecoder
from model_export.model.history import NUM_RESERVED_CODES, HistoryEncoder


@dataclass(frozen=True, kw_only=True)
class HistoryBatch:
    """What the encoder reads; the meaning of each array stands in `service.inference.runner.Batch`."""

    codes_BTL: Tensor
    actions_BT: Tensor
    times_BT: Tensor
    values_BT: Tensor
    lengths_B: Tensor
    now_B: Tensor

    def as_args(self) -> tuple[Tensor, ...]:
        """In the order that `HistoryEncoder.forward` takes."""
        return (self.codes_BTL, self.actions_BT, self.times_BT, self.values_BT, self.lengths_B, self.now_B)


class Generator(nn.Module):
    """Encoder, decoder, and the tables of codes at both ends.

    Every item of the slate starts with [BOS], as in OneRec. The last code of an item would be read only together
    with the next [BOS], so the two are one position: [BOS] plus the sum of the codes of the item before it. An item
    costs L positions instead of L + 1.
    """

    def __init__(self, config: ModelConfig, spec: GeneratorSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.encoder = HistoryEncoder(config, spec)
        self.decoder = SlateDecoder(config)
        self.start_D = nn.Parameter(torch.randn(config.width) * 0.02)
        """[BOS]."""
        self.level_LD = nn.Parameter(torch.randn(spec.num_levels, config.width) * 0.02)
        self.position_KD = nn.Parameter(torch.randn(spec.slate_size, config.width) * 0.02)
        self.heads = nn.ModuleList(nn.Linear(config.width, size) for size in spec.codebook_sizes)
        for table in self.code_tables:
            nn.init.normal_(table.weight, std=config.width**-0.5)
        for table in (self.encoder.embedding.action, self.encoder.embedding.place, self.encoder.embedding.age):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.encoder.embedding.value.weight, std=0.02)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def code_tables(self) -> list[nn.Embedding]:
        """Per level the embedding of its codes, shared by history and slate; code c stands at row c + 2."""
        return [table for table in self.encoder.embedding.codes if isinstance(table, nn.Embedding)]

    def position_offset(self, position: int, level: int) -> Tensor:
        """The vector [D] that tells the decoder where in the slate a code is written; [BOS] included at level 0."""
        offset = self.level_LD[level] + self.position_KD[position]
        return offset + self.start_D if level == 0 else offset

    def embed_slate(self, codes_BKL: Tensor) -> Tensor:
        """Decoder input [B, S, D] for known slates; position (k, l) holds what is known before code (k, l)."""
        code_vectors = [
            table(codes_BKL[:, :, level] + NUM_RESERVED_CODES) for level, table in enumerate(self.code_tables)
        ]
        item_BKD = torch.stack(code_vectors).sum(0)
        previous_BKD = torch.cat([torch.zeros_like(item_BKD[:, :1]), item_BKD[:, :-1]], 1)
        columns = [previous_BKD + self.start_D, *code_vectors[:-1]]
        x_BKLD = torch.stack(columns, 2) + self.level_LD + self.position_KD[: codes_BKL.shape[1], None]
        return x_BKLD.flatten(1, 2)

    def forward(self, history: HistoryBatch, codes_BKL: Tensor) -> list[Tensor]:
        """Teacher forcing: per level the logits [B, K, V] of each code given the history and all codes before it."""
        memory_BTD, bias = self.encoder(*history.as_args())
        x_BSD = self.dropout(self.embed_slate(codes_BKL))
        hidden_BSD = self.decoder(x_BSD, self.decoder.context(memory_BTD), bias)
        hidden_BKLD = hidden_BSD.unflatten(1, (codes_BKL.shape[1], self.spec.num_levels))
        return [head(hidden_BKLD[:, :, level]) for level, head in enumerate(self.heads)]
