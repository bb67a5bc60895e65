"""How a generator is aligned to a reward, as a recipe chooses it."""

from dataclasses import dataclass
from typing import Literal, get_args

from model_export.train.config import Precision

CandidateKind = Literal["beam", "sampled"]
RejectedKind = Literal["worst", "likeliest", "random"]
Control = Literal["none", "supervised"]
Objective = Literal["dpo", "grpo", "ecpo"]
_COUNTS = (
    "num_steps",
    "batch_size",
    "supervised_batch_size",
    "num_valid_examples",
    "rollout_batch_size",
    "checkpoint_every",
    "min_target_items",
)


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Settings of the stage `align`; a recipe's table `[align]` fills them.

    The loss of a step is NTP + preference_weight x (objective + chosen_weight x NLL of the best slate per code). An
    iteration is *kept* if the held-out reward is above that of the best model so far, and neither NDCG@10 nor diversity
    has fallen below its share of the start's (`max_ndcg_drop`, `max_diversity_drop`). The stage returns the model of
    the last iteration that was kept, or the start if there was none.
    """

    num_iterations: int = 0
    """Rounds of rollouts and training; the reference policy of a round is the policy at its start. 0: the generator
    stays as it was trained."""
    preference_share: float = 0.05
    """Share of the training examples that each iteration rolls out, other ones every time until all had their turn;
    the paper takes .01 of a log that is thousands of times larger."""
    candidates: CandidateKind = "sampled"
    """`beam`: the beam search's slates, as in the paper; `sampled`: independent draws through the trie."""
    num_candidates: int = 32
    """Slates per example, or beam width (paper: 128). `grpo` and `ecpo` train on all of them."""
    temperature: float = 0.6
    """Of sampled candidates; below 1 they gather around the likeliest slates. `grpo` and `ecpo` are policy gradients
    only at 1."""
    objective: Objective = "dpo"
    """`dpo`: the best candidate against another (IPA, the OneRec paper); `grpo`, `ecpo`: all candidates of a user, by
    how far their rewards lie from the user's mean, as a clipped policy gradient (ECPO: OneRec Technical Report)."""
    rejected: RejectedKind = "worst"
    """Of `dpo`: against the candidate of the highest reward stands that of the lowest (`worst`: the paper), the
    likeliest (`likeliest`: what would be served), or any (`random`)."""
    min_reward_margin: float = 0.0
    """Users whose slates' rewards differ by no more than this are left out; in units of the reward."""
    num_steps: int = 100
    """Optimiser steps per iteration; users come in shuffled passes."""
    batch_size: int = 64
    """Users a step, with two slates each (`dpo`) or all candidates."""
    supervised_batch_size: int = 64
    """Examples a step for next-token prediction."""
    min_target_items: int = 1
    """Of the examples for next-token prediction; as `train.min_target_items`."""
    preference_weight: float = 2.0
    """Lambda: weight of the preference loss against next-token prediction."""
    beta: float = 0.5
    """Of `dpo`, how far the policy may leave the reference: the higher, the nearer it stays."""
    clip: float = 0.2
    """Of `grpo` and `ecpo`: a slate stops counting where its probability has changed by this share as it should; from 1
    on only where a good one has become likelier by it."""
    early_clip: float = 0.1
    """Of `ecpo`: what a bad slate that has become likelier counts is bounded at 1 + clip + this (paper: .1)."""
    chosen_weight: float = 0.0
    """Weight of the best slate's own negative log likelihood per code (Pang et al. 2024, arXiv 2404.19733)."""
    learning_rate: float = 3e-4
    """Of AdamW, constant after the warm-up."""
    warmup_steps: int = 10
    """Steps in which the rate rises from zero, once."""
    max_gradient_norm: float = 1.0
    """Longer gradients are scaled down to it."""
    patience: int = 2
    """Iterations without one that is kept before alignment stops; 0: never. A control runs to its end."""
    max_ndcg_drop: float = 0.4
    """Largest relative loss of validation NDCG@10 against the start that an iteration may have and be kept. It fell by
    a quarter where the true reward rose by a third (docs/decisions/0012): what pleases is not what was logged next."""
    max_diversity_drop: float = 0.1
    """The same for the share of a slate's pairs whose items differ in the first code."""
    num_valid_examples: int = 500
    """Validation examples whose best slates are scored after each iteration; the same ones every time."""
    valid_beam_width: int = 20
    """Beam of that decoding."""
    rollout_batch_size: int = 32
    """Examples that are decoded at once."""
    checkpoint_every: int = 100
    """Steps between two checkpoints; one is written after every iteration, too."""
    precision: Precision = "auto"
    """`auto`: bfloat16 on a GPU that has it, float32 on a CPU; logprobs of slates are always summed in float32."""
    control: Control = "none"
    """`supervised`: the same steps on the same batches with next-token prediction alone, without rollouts; the model
    after the last of them comes out."""
    seed: int = 0
    """Seed of shares, candidates, order and dropout."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            self._check(name, getattr(self, name) >= 1, "be at least 1")
        self._check("num_candidates", self.num_candidates >= 2, "be at least 2: one slate has no rival")
        self._check("valid_beam_width", self.valid_beam_width >= 10, "be at least 10 for NDCG@10")
        self._check("preference_share", 0 < self.preference_share <= 1, "lie in (0, 1]")
        for name in ("temperature", "beta", "clip", "learning_rate", "max_gradient_norm"):
            self._check(name, getattr(self, name) > 0, "be positive")
        for name in (
            "num_iterations",
            "min_reward_margin",
            "preference_weight",
            "early_clip",
            "chosen_weight",
            "warmup_steps",
            "patience",
            "seed",
        ):
            self._check(name, getattr(self, name) >= 0, "not be negative")
        for name in ("max_ndcg_drop", "max_diversity_drop"):
            self._check(name, 0 <= getattr(self, name) <= 1, "lie in [0, 1]")
        self._check(
            "candidates", self.objective == "dpo" or self.candidates == "sampled", "be sampled for grpo and ecpo"
        )
        choices = {
            "candidates": CandidateKind,
            "objective": Objective,
            "rejected": RejectedKind,
            "precision": Precision,
            "control": Control,
        }
        for name, kind in choices.items():
            self._check(name, getattr(self, name) in get_args(kind), f"be one of {', '.join(get_args(kind))}")

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"align.{name} must {rule}, is {getattr(self, name)!r}")
