"""The reward model inside the generator's graph: what it expects of each item of each beam's slate.

Legend: B requests, T history length, W beams, K slate size, L levels, N items, E width of an item embedding.
"""

import torch
from torch import Tensor, nn

from model_export.model.generator import HistoryBatch
from model_export.model.history import NUM_RESERVED_CODES
from model_export.reward.model import RewardBatch, RewardModel
from model_export.search.candidates import take


class RewardGraph(nn.Module):
    """`RewardModel.item_rewards` of items by their rows: the piece `reward` of a search; standard operators alone."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.model = model
        self.history_length = model.spec.history_length
        self.embedding_width = model.spec.embedding_width
        self.train(model.training)

    def forward(
        self,
        codes_BTL: Tensor,
        actions_BT: Tensor,
        ages_BT: Tensor,
        values_BT: Tensor,
        lengths_B: Tensor,
        history_rows_BT: Tensor,
        embeddings_NE: Tensor,
        sids_NL: Tensor,
        item_rows_BWK: Tensor,
    ) -> Tensor:
        """Returns [B, W, K]; 0 where a slate has ended. Rows below 0 are no item of the catalog."""
        # The generator may read longer histories: the newest events count here.
        num_requests, length = codes_BTL.shape[:2]
        skipped_B1 = (lengths_B - self.history_length).clamp(min=0).unsqueeze(1)
        place_BT = (torch.arange(length, device=codes_BTL.device) + skipped_B1).clamp(max=length - 1)
        place_BT = place_BT + torch.arange(num_requests, device=codes_BTL.device).unsqueeze(1) * length
        rows_BT = take(history_rows_BT.flatten(), place_BT)
        history = HistoryBatch(
            codes_BTL=take(codes_BTL.flatten(0, 1), place_BT),
            actions_BT=take(actions_BT.flatten(), place_BT),
            ages_BT=take(ages_BT.flatten(), place_BT),
            values_BT=take(values_BT.flatten(), place_BT),
            lengths_B=lengths_B.clamp(max=self.history_length),
        )
        codes_BWKL = take(sids_NL, item_rows_BWK.clamp(min=0)) + NUM_RESERVED_CODES
        batch = RewardBatch(
            history=history,
            history_embeddings_BTE=_embeddings(embeddings_NE, rows_BT),
            codes_BWKL=torch.where(item_rows_BWK.unsqueeze(-1) >= 0, codes_BWKL, 0),
            embeddings_BWKE=_embeddings(embeddings_NE, item_rows_BWK),
        )
        return self.model.item_rewards(batch)


def _embeddings(embeddings_NE: Tensor, rows: Tensor) -> Tensor:
    """By row; zero for no item, as in training."""
    return torch.where(rows.unsqueeze(-1) >= 0, take(embeddings_NE, rows.clamp(min=0)), 0.0)
