"""What a generator is made of: what a recipe chooses, and what the data determines."""

from dataclasses import dataclass
from typing import Literal

ScoreMode = Literal["full_softmax", "legal_softmax"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size and shape of the generator, as a recipe chooses it."""

    width: int = 64
    """D: size of the vectors between the layers."""
    num_heads: int = 4
    """Attention heads."""
    head_width: int = 16
    """Size of one head; heads x head_width need not equal the width (T5)."""
    encoder_layers: int = 2
    """Layers over the user history."""
    decoder_layers: int = 2
    """Layers over the slate's codes."""
    feed_forward_width: int = 128
    """Hidden size of a dense feed-forward, and of each expert."""
    num_experts: int = 4
    """E: experts in each decoder feed-forward; 1 makes it dense."""
    num_active_experts: int = 2
    """Experts that compute for a token."""
    expert_bias_rate: float = 0.0
    """u: what a training step adds to the choice bias of an expert with less than its share of the tokens, and takes
    from one with more (loss-free balancing, arXiv 2408.15664); 0: no bias."""
    dropout: float = 0.1
    """Share of activations dropped while training."""
    item_vector_width: int = 0
    """Size of the item vectors that score beside the codes (`model_export.model.items`); 0: codes alone."""
    score_mode: ScoreMode = "full_softmax"
    """`full_softmax`: over the whole codebook; `legal_softmax`: over the codes that the catalog's trie allows."""

    def __post_init__(self) -> None:
        for name in ("width", "num_heads", "head_width", "feed_forward_width", "num_experts", "decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if self.encoder_layers < 0:
            raise ValueError(f"model.encoder_layers must not be negative, is {self.encoder_layers}")
        if not 1 <= self.num_active_experts <= self.num_experts and self.num_experts > 1:
            raise ValueError(
                f"model.num_active_experts must lie in 1..{self.num_experts} (experts), is {self.num_active_experts}"
            )
        if not 0 <= self.expert_bias_rate < 1:
            raise ValueError(f"model.expert_bias_rate must lie in [0, 1), is {self.expert_bias_rate}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must lie in [0, 1), is {self.dropout}")
        if self.item_vector_width < 0:
            raise ValueError(f"model.item_vector_width must not be negative, is {self.item_vector_width}")
        if self.item_vector_width > 0 and self.score_mode == "full_softmax":
            raise ValueError(
                "model.item_vector_width needs model.score_mode legal_softmax: codes that no item has, have no vector"
            )
        if self.score_mode not in ("full_softmax", "legal_softmax"):
            raise ValueError(f"model.score_mode must be full_softmax or legal_softmax, not {self.score_mode!r}")


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """What the data and the tokenizer determine about a generator."""

    codebook_sizes: tuple[int, ...]
    """V: codes per level."""
    slate_size: int
    """K: items of a slate."""
    history_length: int
    """T: newest events that are read."""
    value_edges: tuple[tuple[float, ...], ...]
    """Per action the ascending bucket edges of its raw value; empty: no value."""
    has_times: bool
    """Whether times mean anything in this data."""
    embedding_width: int = 0
    """Size of the item embeddings that item vectors are made of; 0: there are none."""

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.codebook_sizes)

    @property
    def num_actions(self) -> int:
        """Kinds of events; number 0 is padding and not counted."""
        return len(self.value_edges)
