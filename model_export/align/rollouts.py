"""Rollouts: of a user's candidate slates, which ones are trained on, and what a scorer thinks of them.

Legend: B examples of a batch, W candidates of each, P groups, K slate size, S slates of a group: the chosen and the
rejected one of a pair, or all candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_export.align.candidates import Candidates, CandidateSearch
from model_export.align.config import AlignConfig
from model_export.data.examples import Examples
from model_export.progress import Progress
from model_export.reward.scorer import SlateScorer

Float = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
_ARRAYS = ("example_P", "row_PSK", "reward_PS", "reference_PS", "drawn_row_PK", "drawn_reference_P")


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Groups of slates of one iteration, and one candidate of each example at random to measure drift on."""

    example_P: npt.NDArray[np.int64]
    """Place in the training examples."""
    row_PSK: npt.NDArray[np.int32]
    """Item rows of the slates that are trained on; of a pair the chosen one comes first."""
    reward_PS: Float
    """What the scorer says about them; NaN: there is no slate."""
    reference_PS: Float
    """Their logprobs under the reference policy: the weights that wrote them."""
    drawn_row_PK: npt.NDArray[np.int32]
    """Item rows of the candidate at random."""
    drawn_reference_P: Float
    """Its logprob under the reference policy."""
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
    def load(cls, path: Path) -> "Rollouts":
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
) -> Rollouts:
    """Writes candidates for this iteration's share of the examples, scores them and makes groups.

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
        ValueError: No example has candidates whose rewards differ enough.
    """
    example_E = share_of(len(train), config.preference_share, config.seed, iteration)
    rng = np.random.default_rng([config.seed, iteration, 1])
    parts = []
    with progress.task(f"rollouts {iteration + 1}", len(example_E)) as task:
        seed = int(rng.integers(2**62))
        for batch, candidates in search.batches(train[example_E], config.num_candidates, seed=seed):
            reward_BW = score_candidates(scorer, batch, candidates)
            drawn_B1 = draw(reward_BW, rng)[:, None]
            place_BS = choose(config, reward_BW, candidates.score_BW, rng)
            parts.append(
                (
                    np.take_along_axis(candidates.row_BWK, place_BS[:, :, None], 1),
                    np.take_along_axis(reward_BW, place_BS, 1),
                    np.take_along_axis(candidates.row_BWK, drawn_B1[:, :, None], 1)[:, 0],
                    reward_BW,
                )
            )
            task.advance(len(batch))
    row_ESK, reward_ES, drawn_row_EK, reward_EW = (np.concatenate(column) for column in zip(*parts, strict=True))
    spread_E = spread(reward_ES)
    is_used_E = spread_E > config.min_reward_margin
    if not is_used_E.any():
        raise ValueError(
            f"no two candidates of a user differ by more than align.min_reward_margin = {config.min_reward_margin}: "
            "lower it, or raise align.num_candidates or align.temperature"
        )
    example_P, row_PSK, drawn_row_PK = example_E[is_used_E], row_ESK[is_used_E], drawn_row_EK[is_used_E]
    return Rollouts(
        example_P=example_P,
        row_PSK=row_PSK,
        reward_PS=reward_ES[is_used_E],
        reference_PS=logprobs(example_P, row_PSK),
        drawn_row_PK=drawn_row_PK,
        drawn_reference_P=logprobs(example_P, drawn_row_PK[:, None])[:, 0],
        figures=_figures(reward_EW) | {
            "rollout_reward_margin": float(spread_E[is_used_E].mean()),
            "rollout_used_share": float(is_used_E.mean()),
        },
    )  # fmt: skip


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


def best_of(reward_BW: Float) -> Places:
    """The candidate [B] of the highest reward; 0 where there is none."""
    best_B: Places = np.where(np.isnan(reward_BW), -np.inf, reward_BW).argmax(1)
    return best_B


def draw(reward_BW: Float, rng: np.random.Generator) -> Places:
    """A candidate [B] at random; 0 where there is none."""
    drawn_B: Places = np.where(np.isnan(reward_BW), -1.0, rng.random(reward_BW.shape)).argmax(1)
    return drawn_B


def choose(config: AlignConfig, reward_BW: Float, score_BW: Float, rng: np.random.Generator) -> Places:
    """Places [B, S] of the candidates that are trained on: a pair for DPO, else all of them."""
    if config.objective != "dpo":
        return np.broadcast_to(np.arange(reward_BW.shape[1]), reward_BW.shape)
    is_slate_BW = ~np.isnan(reward_BW)
    match config.rejected:
        case "worst":
            rejected_B = np.where(is_slate_BW, reward_BW, np.inf).argmin(1)
        case "likeliest":
            rejected_B = np.where(is_slate_BW, score_BW, -np.inf).argmax(1)
        case "random":
            rejected_B = draw(reward_BW, rng)
    return np.stack([best_of(reward_BW), rejected_B], 1)


def spread(reward_ES: Float) -> Float:
    """Highest less lowest reward [E] of each group; 0 where there is no slate."""
    is_none_ES = np.isnan(reward_ES)
    highest_E = np.where(is_none_ES, -np.inf, reward_ES).max(1)
    lowest_E = np.where(is_none_ES, np.inf, reward_ES).min(1)
    return np.where(is_none_ES.all(1), np.float32(0), highest_E - lowest_E)


def _figures(reward_EW: Float) -> dict[str, float]:
    reward_EW = reward_EW[~np.isnan(reward_EW).all(1)]  # a user whose catalog is used up has no slate
    return {
        "rollout_reward": float(np.nanmean(reward_EW)),
        "rollout_best_reward": float(np.nanmean(np.nanmax(reward_EW, axis=1))),
        "rollout_worst_reward": float(np.nanmean(np.nanmin(reward_EW, axis=1))),
    }
