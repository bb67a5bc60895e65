"""How a model is exported, as a recipe chooses it."""

from dataclasses import dataclass
from typing import get_args

from service.bundle.manifest import Choice


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of the stage `export`; a recipe's table `[export]` fills them."""

    beam_width: int = 20
    """Beams that the service decodes with."""
    max_beam_width: int = 128
    """Most beams that a request may ask for."""
    logprob_tolerance: float = 1e-4
    """Largest difference of a code's logprob between the float32 graph and the trained model."""
    bfloat16_tolerance: float = 0.2
    """The same for bfloat16, which keeps eight bits: what strays further is not offered."""
    bfloat16_min_identical: float = 0.75
    """Share of the best slates that bfloat16 must leave as they are to be offered."""
    choice: Choice = "score"
    """What chooses the answer among the beam's slates: `score`, the generator's own, or `reward`, what the reward model
    expects of them. The score of an aligned generator has learned from the reward already; without alignment `reward`
    has the reward model trained and lets it choose (docs/decisions/0020)."""
    reward_tolerance: float = 1e-3
    """Largest difference of an item's reward between the float32 graph and the reward model."""
    num_parity_requests: int = 64
    """Real histories on which graph and model are compared."""
    num_golden_cases: int = 8
    """Of these, how many go into the bundle."""

    def __post_init__(self) -> None:
        if not 1 <= self.beam_width <= self.max_beam_width:
            raise ValueError(f"export.beam_width must lie in 1..{self.max_beam_width}, not {self.beam_width}")
        if self.choice not in get_args(Choice):
            raise ValueError(f"export.choice must be one of {', '.join(get_args(Choice))}, not {self.choice!r}")
        for name in ("logprob_tolerance", "bfloat16_tolerance", "reward_tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"export.{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.bfloat16_min_identical <= 1:
            raise ValueError(f"export.bfloat16_min_identical must lie in [0, 1], not {self.bfloat16_min_identical}")
        if not 1 <= self.num_golden_cases <= self.num_parity_requests:
            raise ValueError("export.num_golden_cases must lie in 1..num_parity_requests")
