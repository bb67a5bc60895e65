"""The reward model as one graph of standard operators, for `torch.onnx.export`; no stage writes it yet.

Legend: B batch, T history length, W slates of each example, K slate size, L levels, E width of an item embedding,
S signals.
"""

import torch
from torch import Tensor, nn

from model_export.model import HistoryBatch
from model_export.reward.model import RewardBatch, RewardModel

INPUTS = (
    "history_codes", "history_actions", "history_times", "history_values", "history_lengths", "now",
    "history_embeddings", "slate_codes", "slate_embeddings",
)  # fmt: skip
"""The history as in `service.inference.runner.Batch`, and the tokenizer's embedding of each event's item, float32
[B, T, E]; `slate_codes` int32 [B, W, K, L], coded as in histories: c + 2, and 0 after the end of a slate; the
embeddings of their items, float32 [B, W, K, E]. Embeddings of padding may be anything."""
OUTPUTS = ("reward", "expected_signals")
"""Float32 [B, W], and [B, W, S]: how often each signal is expected in the slate, calibrated."""


class RewardGraph(nn.Module):
    """`RewardModel.expectations` with plain tensors for inputs; standard operators alone."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(
        self,
        history_codes: Tensor,
        history_actions: Tensor,
        history_times: Tensor,
        history_values: Tensor,
        history_lengths: Tensor,
        now: Tensor,
        history_embeddings: Tensor,
        slate_codes: Tensor,
        slate_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Rewards [B, W] and expected signals [B, W, S]."""
        history = HistoryBatch(
            codes_BTL=history_codes,
            actions_BT=history_actions,
            times_BT=history_times,
            values_BT=history_values,
            lengths_B=history_lengths,
            now_B=now,
        )
        batch = RewardBatch(
            history=history,
            history_embeddings_BTE=history_embeddings,
            codes_BWKL=slate_codes,
            embeddings_BWKE=slate_embeddings,
        )
        reward_BW, expected_BWS = self.model.expectations(batch)
        return reward_BW, expected_BWS

    def samples(self) -> tuple[Tensor, ...]:
        """Inputs to trace with: 3 users with 4 events and 5 slates each."""
        spec = self.model.spec
        return (
            torch.full((3, 4, spec.num_levels), 2, dtype=torch.int32),
            torch.ones(3, 4, dtype=torch.int32),
            torch.zeros(3, 4, dtype=torch.int64),
            torch.ones(3, 4),
            torch.full((3,), 4, dtype=torch.int32),
            torch.ones(3, dtype=torch.int64),
            torch.ones(3, 4, spec.embedding_width),
            torch.full((3, 5, spec.slate_size, spec.num_levels), 2, dtype=torch.int32),
            torch.ones(3, 5, spec.slate_size, spec.embedding_width),
        )

    def dynamic_shapes(self) -> tuple[dict[int, object], ...]:
        """B, T and W of every input, as `torch.onnx.export` takes them; K and L are the model's."""
        dynamic = torch.export.Dim.DYNAMIC
        sequence, row = {0: dynamic, 1: dynamic}, {0: dynamic}  # T, and W, are second
        return (sequence, sequence, sequence, sequence, row, row, sequence, sequence, sequence)
