"""Alignment and best of N as kinds of models.

Both start from the training that kind `generator` makes of the same tables, and ask one reward model that is shared in
the same way. Alignment chooses its iteration, and the reward model its epoch and calibration, by validation data: so
these kinds have no refit, and the plan says `refit = false`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from model_export.align.best_of_n import BestOfN
from model_export.align.config import CandidateKind
from model_export.align.stage import align
from model_export.data.splits import VALID
from model_export.evaluate.generative import GenerativeRecommender
from model_export.reward.reward_scorer import RewardScorer
from model_export.reward.stage import TrainedReward, train_reward
from model_export.reward.visits import RewardItems
from model_export.tokenizer.tokenization import Tokenization
from model_export.train.stage import TrainedGenerator
from model_export.trials.generators import num_parameters, trained_generator
from model_export.trials.kinds import FitTask, Fitted
from model_export.trials.plan import PlanError
from model_export.trials.shared import data_digest


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig:
    """Table `[best_of_n]`: among which slates the reward model chooses. The defaults are those of alignment."""

    num_candidates: int = 32
    """Slates per example, or beam width."""
    candidates: CandidateKind = "sampled"
    """`beam`: the beam search's slates; `sampled`: independent draws through the trie."""
    temperature: float = 0.6
    """Of sampled candidates."""

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, not {self.num_candidates}")
        if self.candidates not in get_args(CandidateKind):
            raise ValueError(f"candidates must be one of {', '.join(get_args(CandidateKind))}, not {self.candidates!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")


class AlignedKind:
    """The generator, aligned; tables `[model]`, `[train]`, `[tokenize]`, `[export]` (its beam), `[reward]`, `[align]`.

    `align.control = "supervised"` gives the control with the same steps and no preferences. Equal alignments are
    shared, and their folder has the curves, with the true reward where the data are simulated.
    """

    tables: Mapping[str, type | None] = dict.fromkeys(("model", "train", "tokenize", "export", "reward", "align"))
    has_seeds = True
    needs_validation = True

    def fit(self, task: FitTask) -> Fitted:
        """Trains, trains the reward model and aligns, or takes what equal fits have made of it."""
        _check(task)
        recipe = task.recipe()
        if recipe.align.num_iterations == 0:
            raise PlanError("align.num_iterations = 0 would leave the generator as it was trained")
        start = trained_generator(task)
        reward = _trained_reward(task, start.tokenization)

        def make(out: Path) -> None:
            scorer = RewardScorer(reward.trained, task.prepared)
            truth = task.truth() if task.truth is not None else None
            align(recipe.align, start.trained, scorer, task.prepared, out, task.progress, truth)

        made_from = [start.folder.name, reward.folder.name, asdict(recipe.align)]
        folder = task.shared.trained("align", made_from, make)
        aligned = TrainedGenerator.load(folder, task.prepared, start.tokenization.sids_NL)
        return Fitted(
            recommender=GenerativeRecommender(
                aligned, task.prepared, beam_width=recipe.export.beam_width, slate_mode="session"
            ),
            num_parameters=num_parameters(aligned.generator),
            num_epochs=start.num_epochs,
        )


class BestOfNKind:
    """The slate that the reward model likes best among those of the generator as it was trained; tables `[model]`,
    `[train]`, `[tokenize]`, `[reward]` and `[best_of_n]`."""

    tables: Mapping[str, type | None] = {
        "model": None, "train": None, "tokenize": None, "reward": None, "best_of_n": BestOfNConfig,
    }  # fmt: skip
    has_seeds = True
    needs_validation = True

    def fit(self, task: FitTask) -> Fitted:
        """Trains generator and reward model, or takes what equal fits have made of them."""
        _check(task)
        settings = task.table("best_of_n", BestOfNConfig)
        start = trained_generator(task)
        reward = _trained_reward(task, start.tokenization)
        return Fitted(
            recommender=BestOfN(
                start.trained,
                RewardScorer(reward.trained, task.prepared),
                task.prepared,
                num_candidates=settings.num_candidates,
                candidates=settings.candidates,
                temperature=settings.temperature,
                seed=task.seed,
            ),
            num_parameters=num_parameters(start.trained.generator) + num_parameters(reward.trained.model),
            num_epochs=start.num_epochs,
        )


def _check(task: FitTask) -> None:
    """`PlanError` for what these kinds have no answer to, before hours of work."""
    feedback = task.prepared.feedback
    if feedback is None:
        raise PlanError("these data do not tell what was shown: a reward model needs impressions")
    has_validation = len(task.prepared.examples("valid")) > 0 and len(feedback.visits(VALID)) > 0
    if task.num_epochs is not None or not has_validation:
        raise PlanError(
            "there are no validation examples to choose by and to calibrate rewards with: a plan says refit = false"
        )
    if task.recipe().train.targets == "item":
        raise PlanError("an item-wise generator writes no slates that could be preferred: train.targets = session")


@dataclass(frozen=True, kw_only=True)
class _RewardTraining:
    folder: Path
    """Its name covers everything that the training was made from."""
    trained: TrainedReward


def _trained_reward(task: FitTask, tokenization: Tokenization) -> _RewardTraining:
    """Trains the reward model of these settings and this seed, or takes what another fit has made."""
    recipe, items = task.recipe(), RewardItems.of(tokenization)

    def make(out: Path) -> None:
        train_reward(recipe.reward, task.prepared, items, out, task.progress)

    # Not what only the report of the stage `reward` reads.
    settings = asdict(replace(recipe.reward, num_seeds=1, num_bootstrap_samples=1))
    made_from = [settings, asdict(recipe.tokenize), data_digest(task.prepared)]
    folder = task.shared.trained("reward", made_from, make)
    return _RewardTraining(folder=folder, trained=TrainedReward.load(folder, items))
