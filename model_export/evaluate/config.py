"""What a user may choose about the stage `evaluate`."""

from dataclasses import dataclass

SPLITS = ("valid", "test")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `evaluate`; a recipe's table `[evaluate]` fills them."""

    splits: tuple[str, ...] = ("test",)
    """Parts to report on, of `valid` and `test`."""
    ks: tuple[int, ...] = (5, 10, 20)
    """Cut-offs of the item-level metrics, ascending."""
    headline_k: int = 10
    """The cut-off in verdicts, bucket rows and plots; one of `ks`."""
    max_item_examples: int | None = None
    """Examples for the item level, drawn with the seed and the same for all; None: all of them."""
    max_slate_examples: int | None = 2000
    """Examples for the slate level, drawn with the seed and the same for all; None: all of them."""
    num_bootstrap_samples: int = 1000
    """Resamples behind every interval and test."""
    confidence: float = 0.95
    """Level of the intervals; a difference is significant when its interval leaves 0 out."""
    seed: int = 0
    """Of the drawn examples and of the bootstrap."""

    def __post_init__(self) -> None:
        if not self.splits or set(self.splits) - set(SPLITS):
            raise ValueError(f"splits must be some of {', '.join(SPLITS)}, not {', '.join(self.splits) or 'empty'}")
        if not self.ks or min(self.ks) < 1 or list(self.ks) != sorted(set(self.ks)):
            raise ValueError(f"ks must be ascending positive numbers, not {self.ks}")
        if self.headline_k not in self.ks:
            raise ValueError(f"headline_k {self.headline_k} must be one of ks {self.ks}")
        for name in ("max_item_examples", "max_slate_examples"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1 or left out, not {limit}")
        if self.num_bootstrap_samples < 1:
            raise ValueError(f"num_bootstrap_samples must be at least 1, not {self.num_bootstrap_samples}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie in (0, 1), not {self.confidence}")
