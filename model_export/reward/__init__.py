"""What a whole slate is worth to a user: the session reward model."""

from model_export.reward.config import RewardConfig
from model_export.reward.report import RewardReport, reward_report
from model_export.reward.reward_scorer import RewardScorer
from model_export.reward.rivals import reward_with_rivals
from model_export.reward.scorer import SlateScorer
from model_export.reward.stage import TrainedReward, train_reward
from model_export.reward.visits import RewardItems

__all__ = [
    "RewardConfig",
    "RewardItems",
    "RewardReport",
    "RewardScorer",
    "SlateScorer",
    "TrainedReward",
    "reward_report",
    "reward_with_rivals",
    "train_reward",
]
