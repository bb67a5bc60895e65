"""What a recipe may choose about the reward model."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from model_export.model.config import ModelConfig

Scope = Literal["session", "item", "position"]


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Size, inputs and training of the reward model; a recipe's table `[reward]` fills them."""

    scope: Scope = "session"
    """What the model may see of a slate: `session`: all its items; `item`: each item alone, with the history and its
    position; `position`: the position alone. The last two are what the first is measured against."""
    causal: bool = False
    """`session`: an item sees only the items shown before it (see docs/decisions/0009)."""
    absorbs_context: bool = False
    """`session`: while training, what company tells of the user has numbers of its own, which are left out when slates
    are scored (`model_export.reward.company.Company`). For models that choose slates; a model that only predicts what
    happens in a log is better off without."""
    residual: bool = False
    """`session`: first a model of single items is trained, which then stays as it is; company is a term on its logits,
    learned from visits of two or more. Before calibration the difference to the model of single items is company and
    nothing else, and is known more surely than that of two trainings."""
    signals: tuple[str, ...] = ()
    """Signals with a tower; empty: all with at least `min_positives` in the training part."""
    signal_weights: tuple[float, ...] = ()
    """What one expected occurrence of each of `signals` adds to the reward, in their order; empty: 1 each."""
    min_positives: int = 50
    """With `signals` empty: signals that are rarer in the training part get no tower."""
    width: int = 32
    """D: size of the vectors between the layers."""
    num_heads: int = 4
    """Attention heads."""
    head_width: int = 8
    """Size of one head."""
    feed_forward_width: int = 64
    """Hidden size of the feed-forwards."""
    history_layers: int = 1
    """Self-attention layers over the user history."""
    target_layers: int = 1
    """Layers in which the slate's items attend to the history."""
    slate_layers: int = 1
    """Self-attention layers over the slate's items."""
    tower_width: int = 32
    """Hidden size of each signal's tower."""
    dropout: float = 0.2
    """Share of activations dropped while training."""
    history_length: int = 50
    """T: newest events that the model reads."""
    history_dropout: float = 0.05
    """Share of training histories that are emptied, so that new users are in distribution."""
    slate_dropout: float = 0.3
    """`session`: share of training slates whose items are read each alone, so that a model of items stays inside. Not
    with `residual`, which has one inside."""
    batch_size: int = 128
    """Visits a step."""
    learning_rate: float = 1e-3
    """Highest rate of AdamW, after the warm-up; falls to a hundredth along a cosine."""
    weight_decay: float = 0.2
    """Of AdamW; on matrices, not on biases and norms."""
    warmup_steps: int = 100
    """Steps in which the rate rises from zero."""
    max_epochs: int = 10
    """Passes over the training visits; the cosine ends with the last."""
    residual_epochs: int = 6
    """`residual`: passes of the term over its visits."""
    patience: int = 2
    """Epochs without a lower validation loss before training stops; 0: never."""
    max_gradient_norm: float = 1.0
    """Longer gradients are scaled down to it."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; one is written after every epoch, too."""
    num_bootstrap_samples: int = 1000
    """Samples of the report's intervals."""
    num_seeds: int = 1
    """Trainings of every model behind the report, with `seed` and those after it; the first is the one that is used."""
    seed: int = 0
    """Seed of weights, order, dropout, shuffled sessions and bootstrap."""

    def __post_init__(self) -> None:
        self._check_scope()
        self._check_signals()
        for name in (
            "min_positives", "width", "num_heads", "head_width", "feed_forward_width", "slate_layers", "target_layers",
            "tower_width", "history_length", "batch_size", "max_epochs", "residual_epochs",
            "checkpoint_every", "num_bootstrap_samples", "num_seeds",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"reward.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "max_gradient_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"reward.{name} must be positive, not {getattr(self, name)}")
        for name in ("history_layers", "weight_decay", "warmup_steps", "patience", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"reward.{name} must not be negative, not {getattr(self, name)}")
        for name in ("dropout", "history_dropout", "slate_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"reward.{name} must lie in [0, 1), not {getattr(self, name)}")

    def _check_scope(self) -> None:
        if self.scope not in get_args(Scope):
            raise ValueError(f"reward.scope must be one of {', '.join(get_args(Scope))}, not {self.scope!r}")
        if self.causal and self.scope != "session":
            raise ValueError(f"reward.causal needs reward.scope session, not {self.scope}")
        if self.absorbs_context and not self.causal:
            raise ValueError(
                "reward.absorbs_context needs reward.causal: what stands before and after must not be told apart twice"
            )
        if self.residual and (self.scope != "session" or self.absorbs_context):
            raise ValueError("reward.residual needs reward.scope session, and has no context to absorb")

    def _check_signals(self) -> None:
        if len(set(self.signals)) < len(self.signals):
            raise ValueError(f"reward.signals names one twice: {', '.join(self.signals)}")
        if self.signal_weights and len(self.signal_weights) != len(self.signals):
            raise ValueError(
                f"reward.signal_weights must be as many as reward.signals ({len(self.signals)}), "
                f"not {len(self.signal_weights)}"
            )
        if not all(abs(weight) < float("inf") for weight in self.signal_weights):
            raise ValueError(f"reward.signal_weights must be finite, not {list(self.signal_weights)}")
        if self.signal_weights and not any(self.signal_weights):
            raise ValueError("reward.signal_weights are all 0: nothing would be rewarded")

    def of_items(self, signals: tuple[str, ...]) -> "RewardConfig":
        """The model of single items that is otherwise the same, of the same signals also where the data chose them."""
        alone = replace(self, scope="item", causal=False, absorbs_context=False, residual=False)
        return replace(alone, signals=signals, signal_weights=())

    def layers(self) -> ModelConfig:
        """The shape of its layers, as the generator's layers take it."""
        return ModelConfig(
            width=self.width,
            num_heads=self.num_heads,
            head_width=self.head_width,
            encoder_layers=self.history_layers,
            feed_forward_width=self.feed_forward_width,
            num_experts=1,
            num_active_experts=1,
            dropout=self.dropout,
        )
