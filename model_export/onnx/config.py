"""How a model is exported, as a recipe chooses it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of the stage `export`; a recipe's table `[export]` fills them."""

    beam_width: int = 20
    """Beams that the service decodes with."""
    max_beam_width: int = 128
    """Most beams that a request may ask for."""
    logprob_tolerance: float = 1e-4
    """Largest difference of a code's logprob between the float32 graph and the trained model."""
    num_parity_requests: int = 64
    """Real histories on which graph and model are compared."""
    num_golden_cases: int = 8
    """Of these, how many go into the bundle."""

    def __post_init__(self) -> None:
        if not 1 <= self.beam_width <= self.max_beam_width:
            raise ValueError(f"export.beam_width must lie in 1..{self.max_beam_width}, not {self.beam_width}")
        if not self.logprob_tolerance > 0:
            raise ValueError(f"export.logprob_tolerance must be positive, not {self.logprob_tolerance}")
        if not 1 <= self.num_golden_cases <= self.num_parity_requests:
            raise ValueError("export.num_golden_cases must lie in 1..num_parity_requests")
