"""The pieces of the search that choose: which candidates of all beams go on as the next beams.

A beam that has no legal candidate ends, and stays among the beams at a score of its own; a dead beam may be anywhere,
and stays dead. Parents are looked up, not
divided: the exporter divides integers as floats, and there OpenVINO multiplies by the reciprocal, and so takes some
first candidates for those of the beam before.

Legend: B requests, W beams in, U beams out, N = B * W, P codes so far, C candidates of a beam, V codes of a level,
S best candidates, I places of candidates, R chosen items plus one dummy.
"""

import torch
from torch import Tensor, nn

from model_export.search.candidates import DEAD, take


class Places(nn.Module):
    """What stands at each place of all candidates, and behind them of beams that end, and of dead ones to fill up.

    Once a run: W is the same at every step but the first.
    """

    def forward(self, slots_B: Tensor, width_W: Tensor, branch_C: Tensor) -> tuple[Tensor, ...]:
        """The arguments only give B, W, and one more than C.

        Returns the beam of each place [W * C + 3 W], the totals of up to 2 W dead beams [B, 2 W], and the child of what
        stands behind the candidates [B, 3 W]: -1, the beam has ended.
        """
        beam_W = torch.arange(width_W.shape[0], device=width_W.device)
        beam_WC = beam_W.unsqueeze(1) + torch.zeros_like(branch_C[1:], dtype=torch.int64)
        none_W = torch.zeros_like(beam_W)
        dead_BU = torch.zeros_like(slots_B, dtype=torch.float32).unsqueeze(1) + torch.cat([none_W, none_W]) + DEAD
        ended_BI = (slots_B.unsqueeze(1) * 0 - 1) + torch.cat([none_W, none_W, none_W]).to(torch.int32)
        return torch.cat([beam_WC.flatten(), beam_W, none_W, none_W]), dead_BU, ended_BI


class Select(nn.Module):
    """Keeps the best candidates over all beams of a request."""

    def forward(
        self,
        total_BWC: Tensor,
        logprob_BWC: Tensor,
        child_BWC: Tensor,
        base_BW: Tensor,
        kept_BW: Tensor,
        parent_I: Tensor,
        beams_U: Tensor,
        dead_BU: Tensor,
        ended_BI: Tensor,
        *others_BWC: Tensor,
    ) -> tuple[Tensor, ...]:
        """Adds `base` to the totals; a beam whose candidates are all dead goes on alone, with the score `kept`.

        `parent_I`, `dead_BU`, `ended_BI`: from `Places`; `beams_U` only gives U. Returns score, parent, child (-1: the
        beam has ended), logprob and the others, each [B, U], best first.
        """
        total_BI = (total_BWC + base_BW.unsqueeze(2)).flatten(1)
        score_BI = torch.cat([total_BI, _ended(total_BWC.amax(2), kept_BW), dead_BU], 1)
        score_BU, place_BU = score_BI.topk(beams_U.shape[0], dim=1)
        child_BU = torch.cat([child_BWC.flatten(1), ended_BI], 1).gather(1, place_BU)
        nothing_BI = ended_BI.to(torch.float32) * 0
        others = (torch.cat([one.flatten(1), nothing_BI], 1) for one in (logprob_BWC, *others_BWC))
        return score_BU, take(parent_I, place_BU), child_BU, *[one_BI.gather(1, place_BU) for one_BI in others]


class SelectRoot(nn.Module):
    """The same among the codes of the first level, of which all beams of a request have the same, maybe thousands."""

    def forward(
        self,
        total_BWV: Tensor,
        logprob_BWV: Tensor,
        child_V: Tensor,
        base_BW: Tensor,
        kept_BW: Tensor,
        node_BW: Tensor,
        beams_U: Tensor,
        parent_I: Tensor,
        *others_BWV: Tensor,
    ) -> tuple[Tensor, ...]:
        """As `Select`, but that some beams have ended before: their `node` is -1."""
        num_codes = total_BWV.shape[2]
        has_ended_BW = node_BW < 0
        best_BW = torch.where(has_ended_BW, DEAD, total_BWV.amax(2))
        base_BW = torch.where(has_ended_BW, DEAD, base_BW)
        score_BS, place_BS = _best((total_BWV + base_BW.unsqueeze(2)).flatten(1), beams_U)
        parent_BS = take(parent_I, place_BS)
        code_BS = place_BS - parent_BS * num_codes
        # Few are left: now those that end, and dead ones to fill up.
        dead_BU = torch.full_like(kept_BW[:, :1], DEAD) + torch.zeros_like(beams_U, dtype=torch.float32)
        score_BU, rank_BU = torch.cat([score_BS, _ended(best_BW, kept_BW), dead_BU], 1).topk(beams_U.shape[0], dim=1)
        none_BU = torch.zeros_like(dead_BU, dtype=torch.int64)
        beam_BW = torch.zeros_like(node_BW, dtype=torch.int64) + torch.arange(node_BW.shape[1], device=node_BW.device)
        parent_BU = torch.cat([parent_BS, beam_BW, none_BU], 1).gather(1, rank_BU)
        code_BU = torch.cat([code_BS, beam_BW * 0 - 1, none_BU - 1], 1).gather(1, rank_BU)
        is_child_BU, known_BU = code_BU >= 0, code_BU.clamp(min=0)
        child_BU = torch.where(is_child_BU, take(child_V, known_BU), -1)
        place_BU = parent_BU * num_codes + known_BU
        others = (one.flatten(1).gather(1, place_BU) for one in (logprob_BWV, *others_BWV))
        return score_BU, parent_BU, child_BU, *[torch.where(is_child_BU, one_BU, 0.0) for one_BU in others]


def _ended(best_BW: Tensor, kept_BW: Tensor) -> Tensor:
    """The score of each beam whose best candidate is dead; `DEAD` for those that go on."""
    return torch.where(best_BW > DEAD / 2, DEAD, kept_BW)


def _best(total_BI: Tensor, beams_U: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and places of the best U candidates, or of all, where there are fewer."""
    if not torch.compiler.is_exporting():
        score_BS, place_BS = total_BI.topk(min(beams_U.shape[0], total_BI.shape[1]), dim=1)
        return score_BS, place_BS
    # Spelled out, because the tracer would settle which of the two is less.
    sizes = [
        torch.onnx.ops.symbolic(
            "Shape", (of,), {"start": dim, "end": dim + 1}, dtype=torch.int64, shape=(1,), version=19
        )
        for of, dim in ((beams_U, 0), (total_BI, 1))
    ]
    num_best_1 = torch.onnx.ops.symbolic("Min", sizes, dtype=torch.int64, shape=(1,), version=13)
    shape, dtypes = (total_BI.shape[0], beams_U.shape[0]), (torch.float32, torch.int64)
    score_BS, place_BS = torch.onnx.ops.symbolic_multi_out(
        "TopK", (total_BI, num_best_1), {"axis": 1}, dtypes=dtypes, shapes=(shape, shape), version=11
    )
    return score_BS, place_BS


class Distinct(nn.Module):
    """At the end of an item keeps the best of the beams that hold the same set of items in another order."""

    def forward(
        self,
        score_BU: Tensor,
        parent_BU: Tensor,
        child_BU: Tensor,
        logprob_BU: Tensor,
        trail_NP: Tensor,
        items_R: Tensor,
        beams_W: Tensor,
        *others_BU: Tensor,
    ) -> tuple[Tensor, ...]:
        """From U selected beams, best first, keeps W; `child` is the row of the new item. Returns as `Select`.

        `items_R`: places of whole items in the trail.
        """
        rows_BWR = trail_NP.index_select(1, items_R).unflatten(0, (score_BU.shape[0], -1))
        rows_BUR = rows_BWR.gather(1, parent_BU.unsqueeze(2).expand(-1, -1, rows_BWR.shape[2]))
        sets_BUR = torch.cat([rows_BUR, child_BU.unsqueeze(2)], 2).sort(2).values
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
