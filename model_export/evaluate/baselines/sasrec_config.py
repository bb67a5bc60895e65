"""What a user may choose about SASRec."""

from dataclasses import dataclass
from typing import Literal, get_args

TextUse = Literal["none", "initialise", "project"]


@dataclass(frozen=True, kw_only=True)
class SasRecConfig:
    """Settings of the SASRec baseline."""

    width: int = 128
    """Width of item embeddings and hidden states."""
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 2
    """Attention heads; they divide the width."""
    feed_forward_width: int = 256
    """Inner width of the feed-forward."""
    max_length: int = 50
    """Newest history items that are read; longer training sequences are cut into pieces of this length."""
    dropout: float = 0.3
    """Dropout after the embeddings, in attention and after every sublayer."""
    temperature: float | None = None
    """Divides the cosine of hidden state and item; None: plain dot product."""
    text: TextUse = "none"
    """`initialise`: item embeddings start from the given item features; `project`: their projection is added."""
    embedding_std: float = 0.02
    """Standard deviation of the item embeddings at the start, from text or not."""
    learning_rate: float = 1e-3
    """Of AdamW, after the warm-up."""
    weight_decay: float = 0.01
    """Of AdamW, on every weight."""
    warmup_steps: int = 100
    """The learning rate rises linearly over these steps and stays."""
    batch_targets: int = 768
    """Targets a step, about: whole pieces of sequences make a batch."""
    max_epochs: int = 60
    """Upper bound; early stopping usually ends before."""
    patience: int = 5
    """Epochs without a better validation NDCG@10 before training stops."""
    max_valid_examples: int = 5000
    """Validation examples used for early stopping, drawn once with the seed."""
    seed: int = 0
    """Of the weights, the order of sequences and dropout."""

    def __post_init__(self) -> None:
        counts = ("width", "num_layers", "num_heads", "feed_forward_width", "max_length", "batch_targets", "max_epochs",
                  "patience", "max_valid_examples")  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide width {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if self.text not in get_args(TextUse):
            raise ValueError(f"text must be one of {', '.join(get_args(TextUse))}, not {self.text!r}")
        if not self.learning_rate > 0 or not self.embedding_std > 0:
            raise ValueError("learning_rate and embedding_std must be positive")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError("weight_decay and warmup_steps must not be negative")
