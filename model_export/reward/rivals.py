"""The reward model together with what it must beat: trained alike, and measured on the same held-out visits."""

from dataclasses import replace
from pathlib import Path

from model_export.data.prepared import PreparedData
from model_export.progress import Progress
from model_export.reward.config import RewardConfig, Scope
from model_export.reward.report import RewardReport, reward_report
from model_export.reward.report_pages import plot_curves
from model_export.reward.stage import TrainedReward, train_reward
from model_export.reward.visits import RewardItems

RIVALS: tuple[Scope, ...] = ("item", "position")


def reward_with_rivals(
    config: RewardConfig,
    prepared: PreparedData,
    items: RewardItems,
    out: Path,
    progress: Progress | None = None,
) -> tuple[TrainedReward, RewardReport]:
    """Trains the reward model of `config` into `out`, its rivals into `out/item` and `out/position`, and compares them.

    Further seeds come into `out/seed-1` and so on, in the same order. Goes on from the checkpoints that it finds.
    Beside the report (`reward_report`) it draws `curves.png`.

    Raises:
        ValueError: as `train_reward` and `reward_report`.
    """
    trained = train_reward(config, prepared, items, out, progress)
    alone = config.of_items(trained.signals)
    configs: dict[str, RewardConfig] = {config.scope: config}
    configs |= {scope: replace(alone, scope=scope) for scope in RIVALS if scope != config.scope}

    def folder_of(scope: str, place: int) -> Path:
        """Where a residual model has the model of single items that it starts from, too: that is the rival itself."""
        folder = out / f"seed-{config.seed + place}" if place else out
        return folder if scope == config.scope else folder / scope

    def fit(scope: str, place: int) -> TrainedReward:
        seeded = replace(configs[scope], seed=config.seed + place)
        folder = folder_of(scope, place)
        return trained if folder == out else train_reward(seeded, prepared, items, folder, progress)

    runs = {scope: [fit(scope, place) for place in range(config.num_seeds)] for scope in configs}
    plot_curves({scope: folder_of(scope, 0) for scope in configs}, out / "curves.png")
    report = reward_report(runs, prepared, out, num_samples=config.num_bootstrap_samples, seed=config.seed)
    return trained, report
