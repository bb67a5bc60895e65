"""The session-wise generative recommender: reads a history, writes a slate (OneRec, arXiv 2502.18965).

Legend: B batch, T history length, L levels, K slate size, S = K * L codes, V codes of a level, D width, N slates or
items, M nodes of a level, C children of a node.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.decoder import SlateDecoder
from model_export.model.history import NUM_RESERVED_CODES, HistoryEncoder
from model_export.model.items import Affinity, ItemVectors


@dataclass(frozen=True, kw_only=True)
class HistoryBatch:
    """What the encoder reads; the meaning of each array stands in `service.inference.runner.Batch`."""

    codes_BTL: Tensor
    actions_BT: Tensor
    ages_BT: Tensor
    values_BT: Tensor
    lengths_B: Tensor
    rows_BT: Tensor | None = None
    """Row in the catalog; -1 pads, and stands for items that it does not hold. Read where there are item vectors."""

    def as_args(self) -> tuple[Tensor, ...]:
        """In the order that `HistoryEncoder.forward` takes; without the rows."""
        return (self.codes_BTL, self.actions_BT, self.ages_BT, self.values_BT, self.lengths_B)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the decoder reads of a history."""

    context: list[tuple[Tensor, Tensor]]
    """Per layer keys and values [B, H, T, C]."""
    bias: Tensor
    """Hides the context's padding."""
    interest_BD: Tensor | None
    """With item vectors: pooled from the history."""

    def of(self, owner_N: Tensor) -> "Memory":
        """The memories of N slates, of which several may share a history."""
        return Memory(
            context=[(key[owner_N], value[owner_N]) for key, value in self.context],
            bias=self.bias[owner_N],
            interest_BD=None if self.interest_BD is None else self.interest_BD[owner_N],
        )


class Generator(nn.Module):
    """Encoder, decoder, and the tables of codes at both ends.

    Every item of the slate starts with [BOS], as in OneRec. The last code of an item would be read only together
    with the next [BOS], so the two are one position: [BOS] plus the sum of the codes of the item before it. An item
    costs L positions instead of L + 1.
    """

    def __init__(self, config: ModelConfig, spec: GeneratorSpec, items: ItemVectors | None = None) -> None:
        """Draws the weights.

        Args:
            config: As the recipe chooses.
            spec: As the data determines.
            items: The items' vectors, where the configuration has any.
        """
        super().__init__()
        assert (items is not None) == (config.item_vector_width > 0)
        self.config = config
        self.spec = spec
        self.affinity = None if items is None else Affinity(config, spec, items)
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

    def remember(self, history: HistoryBatch, vectors_ND: Tensor | None) -> Memory:
        """Encodes histories; `vectors_ND`: the items' vectors, where there are any."""
        memory_BTD, bias, interest_BD = self.encode(history, vectors_ND)
        return Memory(context=self.decoder.context(memory_BTD), bias=bias, interest_BD=interest_BD)

    @property
    def items(self) -> ItemVectors | None:
        """The vectors of the items of its training, where it has any."""
        return None if self.affinity is None else self.affinity.items

    def encode(self, history: HistoryBatch, vectors_ND: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The encoder's output [B, T + 1, D], its bias, and the pooled interest [B, D], if any."""
        items_BTD, interest_BD = self.read_items(history, vectors_ND)
        return (*self.encoder(*history.as_args(), items_BTD), interest_BD)

    def read_items(self, history: HistoryBatch, vectors_ND: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """With item vectors what they add to each event [B, T, D], and the pooled interest [B, D]."""
        if self.affinity is None:
            return None, None
        rows_BT = history.rows_BT
        assert vectors_ND is not None
        assert rows_BT is not None
        is_known_BT1 = (rows_BT >= 0).to(vectors_ND.dtype).unsqueeze(2)
        vectors_BTD = nn.functional.embedding(rows_BT.clamp(min=0), vectors_ND) * is_known_BT1
        interest_BD = self.affinity.interest(vectors_BTD, history.actions_BT, history.lengths_B)
        return self.affinity.into_history(vectors_BTD), interest_BD

    def embed_slate(self, codes_BKL: Tensor, interest_BKD: Tensor | None = None) -> Tensor:
        """Decoder input [B, S, D] for known slates; position (k, l) holds what is known before code (k, l)."""
        code_vectors = [
            table(codes_BKL[:, :, level] + NUM_RESERVED_CODES) for level, table in enumerate(self.code_tables)
        ]
        item_BKD = torch.stack(code_vectors).sum(0)
        previous_BKD = torch.cat([torch.zeros_like(item_BKD[:, :1]), item_BKD[:, :-1]], 1)
        if self.affinity is not None:
            previous_BKD = previous_BKD + self.affinity.into_slate(interest_BKD)
        columns = [previous_BKD + self.start_D, *code_vectors[:-1]]
        x_BKLD = torch.stack(columns, 2) + self.level_LD + self.position_KD[: codes_BKL.shape[1], None]
        return x_BKLD.flatten(1, 2)

    def forward(self, history: HistoryBatch, codes_BKL: Tensor, owner_N: Tensor | None = None) -> list[Tensor]:
        """Teacher forcing: per level the logits [B, K, V] of each code given the history and all codes before it.

        With item vectors only the logits of codes that continue the slate's path in the catalog mean something.

        Args:
            history: The users' histories.
            codes_BKL: Known slates, one for each history.
            owner_N: Whose history each of N slates follows, where several slates share one; each is encoded once.
        """
        vectors_ND = None if self.affinity is None else self.affinity.items()
        memory = self.remember(history, vectors_ND)
        if owner_N is not None:
            memory = memory.of(owner_N)
        if self.affinity is None or vectors_ND is None or memory.interest_BD is None:
            hidden = self._hidden(memory, self.embed_slate(codes_BKL))
            return [head(hidden_BKD) for head, hidden_BKD in zip(self.heads, hidden, strict=True)]
        node_BKL = self.affinity.items.paths.walk(codes_BKL)
        interest_BKD = self.affinity.along(memory.interest_BD, vectors_ND[node_BKL[:, :, -1]])
        hidden = self._hidden(memory, self.embed_slate(codes_BKL, interest_BKD))
        tables = self.affinity.items.of_children(vectors_ND)
        logits = []
        for level, (head, hidden_BKD) in enumerate(zip(self.heads, hidden, strict=True)):
            query_BKD = self.affinity.query(level, interest_BKD, hidden_BKD)
            node_BK = node_BKL[:, :, level]
            logits.append(self.affinity.add_to_logits(level, head(hidden_BKD), query_BKD, node_BK, tables[level]))
        return logits

    def _hidden(self, memory: Memory, x_BSD: Tensor) -> list[Tensor]:
        """Per level the hidden vectors [B, K, D] before each of its codes."""
        hidden_BSD = self.decoder(self.dropout(x_BSD), memory.context, memory.bias)
        hidden_BKLD: Tensor = hidden_BSD.unflatten(1, (-1, self.spec.num_levels))
        return list(hidden_BKLD.unbind(2))
