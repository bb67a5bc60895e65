"""The pieces of the search that choose: which children of all beams go on as the next beams.

Legend: B requests, W beams in, U beams out, R chosen rows plus one dummy, C children of a node.
"""

import torch
from torch import Tensor, nn

from model_export.search.candidates import DEAD, take


class Select(nn.Module):
    """Keeps the best children over all beams of a request."""

    def forward(
        self, total_BWC: Tensor, logprob_BWC: Tensor, first_BW: Tensor, beams_U: Tensor, *others_BWC: Tensor
    ) -> tuple[Tensor, ...]:
        """`beams_U` only gives U. Returns score, parent, child, logprob and the others, each [B, U], best first."""
        num_beams, num_children = total_BWC.shape[1:]
        # With fewer children than beams the rest are dead; padding keeps the shape the same everywhere.
        dead_BU = torch.full_like(first_BW[:, :1], DEAD, dtype=torch.float32) + torch.zeros_like(
            beams_U, dtype=torch.float32
        )
        score_BU, place_BU = torch.cat([total_BWC.flatten(1), dead_BU], 1).topk(beams_U.shape[0], dim=1)
        place_BU = place_BU.clamp(max=num_beams * num_children - 1)
        # Looked up, not divided: the exporter divides integers as floats, and there OpenVINO multiplies by the
        # reciprocal, and so takes some first children for those of the beam before.
        beam_W, branch_C = (torch.arange(size, device=place_BU.device) for size in (num_beams, num_children))
        parent_BU = take(beam_W.unsqueeze(1).expand(-1, num_children).flatten(), place_BU)
        child_BU = first_BW.gather(1, parent_BU) + take(branch_C.expand(num_beams, -1).flatten(), place_BU)
        # A dead beam may point past its node's children; it goes on from node 0, and stays dead.
        child_BU = torch.where(score_BU > DEAD / 2, child_BU, 0)
        return (
            score_BU,
            parent_BU,
            child_BU,
            *[one.flatten(1).gather(1, place_BU) for one in (logprob_BWC, *others_BWC)],
        )


class Distinct(nn.Module):
    """At the end of an item keeps the best of the beams that hold the same set of items in another order."""

    def forward(
        self,
        score_BU: Tensor,
        parent_BU: Tensor,
        child_BU: Tensor,
        logprob_BU: Tensor,
        rows_BWR: Tensor,
        beams_W: Tensor,
        *others_BU: Tensor,
    ) -> tuple[Tensor, ...]:
        """From U selected beams, best first, keeps W; `child` is the row of the new item. Returns as `Select`."""
        num_rows = rows_BWR.shape[2]
        rows_BUR = rows_BWR.gather(1, parent_BU.unsqueeze(2).expand(-1, -1, num_rows))
        sets_BUR = torch.cat([rows_BUR, child_BU.unsqueeze(2).to(rows_BUR.dtype)], 2).sort(2).values
        # Beams innermost: there are enough of them to fill a processor's vectors.
        sets_BRU = sets_BUR.transpose(1, 2)
        same_BUU = (sets_BRU.unsqueeze(2) == sets_BRU.unsqueeze(3)).all(1)
        order_U = torch.arange(score_BU.shape[1], device=score_BU.device)
        earlier_UU = order_U.unsqueeze(0) < order_U.unsqueeze(1)
        repeated_BU = (same_BUU & earlier_UU).any(2)
        score_BW, place_BW = torch.where(repeated_BU, DEAD, score_BU).topk(beams_W.shape[0], dim=1)
        return score_BW, *[one.gather(1, place_BW) for one in (parent_BU, child_BU, logprob_BU, *others_BU)]


class Widen(nn.Module):
    """Twice as many beams, so that as many as asked for are left when repeated sets are dropped."""

    def forward(self, beams_W: Tensor) -> Tensor:
        """Returns [2 W]."""
        return torch.cat([beams_W, beams_W])
