"""How a generator is trained, as a recipe chooses it."""

from dataclasses import dataclass
from typing import Literal, get_args

Precision = Literal["auto", "float32", "bfloat16"]
TargetKind = Literal["session", "item"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the stage `train`; a recipe's table `[train]` fills them."""

    targets: TargetKind = "session"
    """`session`: the target's items are one slate, each written after those before it; `item`: each of them is a first
    item after the same history, and the generator writes slates of one item."""
    history_length: int = 50
    """T: newest events that the model reads."""
    batch_size: int = 128
    """Examples a step."""
    learning_rate: float = 1e-3
    """Highest rate of AdamW, after the warm-up; falls to a hundredth along a cosine."""
    weight_decay: float = 0.05
    """Of AdamW; on matrices, not on biases and norms."""
    warmup_steps: int = 100
    """Steps in which the rate rises from zero."""
    max_epochs: int = 20
    """Passes over the training examples; the cosine ends with the last."""
    stop_epoch: int = 0
    """Epochs after which training stops although the cosine goes on to `max_epochs`: for training again, without
    validation, up to the epoch that validation chose; 0: `max_epochs`."""
    patience: int = 4
    """Epochs without a better validation NDCG@10 before training stops; 0: never. Without validation examples training
    never stops early, and the last epoch's weights are kept."""
    max_gradient_norm: float = 1.0
    """Longer gradients are scaled down to it."""
    history_dropout: float = 0.05
    """Share of training histories that are emptied, so that new users are in distribution."""
    min_target_items: int = 1
    """Training examples whose target has fewer items are left out: OneRec learns from sessions of high quality alone,
    first of all from those with at least five items watched (arXiv 2502.18965, section 3.2)."""
    first_item_weight: float = 1.0
    """Weight of the target's first item against each later one, for both kinds of targets."""
    num_valid_examples: int = 1000
    """Validation examples that are decoded after each epoch; the same ones every time."""
    valid_beam_width: int = 20
    """Beam of that decoding."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; one is written after every epoch, too."""
    precision: Precision = "auto"
    """`auto`: bfloat16 on a GPU that has it, float32 on a CPU."""
    seed: int = 0
    """Seed of weights, order and dropout."""

    def __post_init__(self) -> None:
        for name in (
            "history_length", "batch_size", "max_epochs", "min_target_items", "num_valid_examples", "checkpoint_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        if self.valid_beam_width < 10:
            raise ValueError(f"train.valid_beam_width must be at least 10 for NDCG@10, not {self.valid_beam_width}")
        for name in ("learning_rate", "max_gradient_norm", "first_item_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} must be positive, not {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "stop_epoch", "patience", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.history_dropout < 1:
            raise ValueError(f"train.history_dropout must lie in [0, 1), not {self.history_dropout}")
        for name, kind in (("precision", Precision), ("targets", TargetKind)):
            if getattr(self, name) not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise ValueError(f"train.{name} must be one of {allowed}, not {getattr(self, name)!r}")
