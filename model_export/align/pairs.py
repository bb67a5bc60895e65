"""Preference pairs: of a user's candidate slates, which is better than which, as a scorer sees it.

Legend: B examples of a batch, W candidates of each, P pairs, K slate size, S = 3: chosen, rejected, drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_export.align.candidates import Candidates, CandidateSearch
from model_export.align.config import AlignConfig, RejectedKind
from model_export.data import Examples
from model_export.progress import Progress
from model_export.reward import SlateScorer

Float = npt.NDArray[np.float32]
CHOSEN, REJECTED, DRAWN = range(3)
_ARRAYS = ("example_P", "row_PSK", "reward_PS", "reference_PS")


@dataclass(frozen=True, kw_only=True)
class PreferencePairs:
    """Pairs of one iteration, and one candidate of each at random to measure drift on."""

    example_P: npt.NDArray[np.int64]
    """Place in the training examples."""
    row_PSK: npt.NDArray[np.int32]
    """Item rows of the chosen, the rejected and the drawn slate."""
    reward_PS: Float
    """What the scorer says about them."""
    reference_PS: Float
    """Their logprobs under the reference policy: the weights that wrote them."""
    figures: dict[str, float]
    """About all candidates of the rollouts."""

    def __len__(self) -> int:
        return len(self.example_P)

    def save(self, path: Path) -> None:
        """Writes the file in one rename."""
        partial = path.with_name(f".{path.name}.writing")
        figures: dict[str, Any] = {name: np.float64(value) for name, value in self.figures.items()}
        with partial.open("wb") as file:
            np.savez(file, **{name: getattr(self, name) for name in _ARRAYS}, **figures)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "PreferencePairs":
        """Reads what `save` wrote."""
        with np.load(path) as file:
            figures = {name: float(file[name]) for name in file.files if name not in _ARRAYS}
            return cls(**{name: file[name] for name in _ARRAYS}, figures=figures)


def roll_out(
    config: AlignConfig,
    search: CandidateSearch,
    scorer: SlateScorer,
    logprobs: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int32]], Float],
    train: Examples,
    iteration: int,
    progress: Progress,
) -> PreferencePairs:
    """Writes candidates for this iteration's share of the examples, scores them and makes pairs.

    The result depends on the policy's weights, the seed and the iteration alone.

    Args:
        config: Share, candidates and choice.
        search: Of the policy.
        scorer: Of the candidates.
        logprobs: The policy's logprobs [P, S] of slates [P, S, K] for examples [P].
        train: All training examples.
        iteration: From 0.
        progress: Where to show how far it is.

    Raises:
        ValueError: No example gives a pair.
    """
    example_E = share_of(len(train), config.preference_share, config.seed, iteration)
    rng = np.random.default_rng([config.seed, iteration, 1])
    parts = []
    with progress.task(f"rollouts {iteration + 1}", len(example_E)) as task:
        seed = int(rng.integers(2**62))
        for batch, candidates in search.batches(train[example_E], config.num_candidates, seed=seed):
            reward_BW = score_candidates(scorer, batch, candidates)
            choice_BS = choose(reward_BW, candidates.score_BW, config.rejected, rng)
            row_BSK = np.take_along_axis(candidates.row_BWK, choice_BS[:, :, None], 1)
            parts.append((row_BSK, np.take_along_axis(reward_BW, choice_BS, 1), reward_BW))
            task.advance(len(batch))
    row_ESK, reward_ES, reward_EW = (np.concatenate(column) for column in zip(*parts, strict=True))
    is_pair_E = reward_ES[:, CHOSEN] - reward_ES[:, REJECTED] > config.min_reward_margin
    if not is_pair_E.any():
        raise ValueError(
            f"no pair of candidates differs by more than align.min_reward_margin = {config.min_reward_margin}: lower "
            "it, or raise align.num_candidates or align.temperature"
        )
    example_P, row_PSK, reward_PS = example_E[is_pair_E], row_ESK[is_pair_E], reward_ES[is_pair_E]
    return PreferencePairs(
        example_P=example_P,
        row_PSK=row_PSK,
        reward_PS=reward_PS,
        reference_PS=logprobs(example_P, row_PSK),
        figures=_figures(reward_EW, reward_PS),
    )


def share_of(num_examples: int, share: float, seed: int, iteration: int) -> npt.NDArray[np.int64]:
    """The examples of an iteration: consecutive parts of one shuffled pass after the other."""
    num_taken = max(1, round(num_examples * share))
    first = iteration * num_taken
    passes = range(first // num_examples, (first + num_taken - 1) // num_examples + 1)
    order = np.concatenate([np.random.default_rng([seed, number]).permutation(num_examples) for number in passes])
    start = first - passes[0] * num_examples
    return order[start : start + num_taken]


def score_candidates(scorer: SlateScorer, examples: Examples, candidates: Candidates) -> Float:
    """Rewards [B, W]; NaN for beams that hold no slate. `ValueError` if the scorer's are not finite."""
    reward_BW = np.array(scorer.score(examples, candidates.item_BWK), dtype=np.float32)
    is_slate_BW = candidates.item_BWK[:, :, 0] >= 0
    if not np.isfinite(reward_BW[is_slate_BW]).all():
        raise ValueError("the scorer gave rewards that are not finite")
    reward_BW[~is_slate_BW] = np.nan
    return reward_BW


def best_of(reward_BW: Float) -> npt.NDArray[np.int64]:
    """The candidate [B] of the highest reward; 0 where there is none."""
    best_B: npt.NDArray[np.int64] = np.where(np.isnan(reward_BW), -np.inf, reward_BW).argmax(1)
    return best_B


def choose(reward_BW: Float, score_BW: Float, rejected: RejectedKind, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Places [B, S] of the chosen, the rejected and the drawn candidate; NaN rewards are never preferred to a slate."""
    is_slate_BW = ~np.isnan(reward_BW)
    noise_BW = np.where(is_slate_BW, rng.random(reward_BW.shape), -1.0)
    drawn_B = noise_BW.argmax(1)
    match rejected:
        case "worst":
            rejected_B = np.where(is_slate_BW, reward_BW, np.inf).argmin(1)
        case "likeliest":
            rejected_B = np.where(is_slate_BW, score_BW, -np.inf).argmax(1)
        case "random":
            # Not the drawn one, which measures drift and so must not be trained on more than any other.
            rejected_B = np.where(is_slate_BW, rng.random(reward_BW.shape), -1.0).argmax(1)
    return np.stack([best_of(reward_BW), rejected_B, drawn_B], 1)


def _figures(reward_EW: Float, reward_PS: Float) -> dict[str, float]:
    num_examples = len(reward_EW)
    reward_EW = reward_EW[~np.isnan(reward_EW).all(1)]  # a user whose catalog is used up has no slate
    return {
        "rollout_reward": float(np.nanmean(reward_EW)),
        "rollout_best_reward": float(np.nanmean(np.nanmax(reward_EW, axis=1))),
        "rollout_worst_reward": float(np.nanmean(np.nanmin(reward_EW, axis=1))),
        "rollout_reward_margin": float((reward_PS[:, CHOSEN] - reward_PS[:, REJECTED]).mean()),
        "rollout_pair_share": len(reward_PS) / num_examples,
    }
