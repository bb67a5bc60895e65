"""The reward model together with what it must beat: trained alike, and measured on the same held-out visits."""

from dataclasses import replace
from pathlib import Path

from model_export.data import PreparedData
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

    Goes on from the checkpoints that it finds. Beside the report (`reward_report`) it draws `curves.png`.

    Raises:
        ValueError: as `train_reward` and `reward_report`.
    """
    trained = train_reward(config, prepared, items, out, progress)
    folders: dict[str, Path] = {config.scope: out}
    runs: dict[str, list[TrainedReward]] = {config.scope: [trained]}
    for scope in RIVALS:
        if scope != config.scope:
            # The same signals, also where the data chose them.
            rival = replace(
                config, scope=scope, causal=False, absorbs_context=False, signals=trained.signals, signal_weights=()
            )
            folders[scope] = out / scope
            runs[scope] = [train_reward(rival, prepared, items, folders[scope], progress)]
    plot_curves(folders, out / "curves.png")
    report = reward_report(runs, prepared, out, num_samples=config.num_bootstrap_samples, seed=config.seed)
    return trained, report
