"""The pieces of the search that score: the codes that may come next for every beam.

Legend: B requests, W beams, N = B * W beams of all requests, P codes so far, R chosen items plus one dummy, G places
for full groups, Q beams or one, C candidates of a beam, V codes of a level, X excluded rows, F filter slots, I items
of the catalog, D width, M nodes of a level.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.model.generator import Generator
from model_export.search.candidates import DEAD, Excluded, Filters, child_logprobs, closed, open_nodes, take

MISSING = 1024.0
"""What a beam's score loses for every item that a cap keeps it from writing: more than any item's logprob, so that
longer slates come first; small enough for float32 to keep the order of what is equally long."""
_MANY_BEAMS = 2**16
"""More than anybody asks for; times the items of a slate it still is an int32, which is all that OpenVINO knows."""


class _Scores(nn.Module):
    """What the scoring pieces share."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.norm = generator.decoder.norm
        self.from_interest = None if generator.affinity is None else generator.affinity.from_interest
        self.score_mode = generator.config.score_mode

    def query(self, hidden_ND: Tensor, interest_ND: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        """As `Affinity.query`, the level's parameters given."""
        assert self.from_interest is not None
        query_ND = self.from_interest(interest_ND) + F.linear(hidden_ND, weight, bias)
        return F.normalize(query_ND, dim=-1) * scale

    @staticmethod
    def kept(
        score_BW: Tensor, node_BW: Tensor, settled_N1: Tensor, num_missing: Tensor, group_limits_B: Tensor
    ) -> Tensor:
        """The score of each beam if it ends here: that of its whole items, and under a cap behind all longer ones.

        What has ended before stays where it is, and so does what is dead.
        """
        fall_B1 = torch.where(group_limits_B > 0, num_missing * MISSING, 0.0).unsqueeze(1)
        ends_here_BW = (node_BW >= 0) & (score_BW > DEAD / 2)
        return torch.where(ends_here_BW, settled_N1.view_as(score_BW) - fall_B1, score_BW)


class ScoreRoot(_Scores):
    """Scores the codes of the first level, of which every beam of a request has the same."""

    def forward(
        self,
        x_ND: Tensor,
        score_BW: Tensor,
        node_BW: Tensor,
        trail_NP: Tensor,
        places_R: Tensor,
        num_missing: Tensor,
        full_NG: Tensor,
        settled_N1: Tensor,
        child_code: Tensor,
        left_BV: Tensor,
        dead_BV: Tensor,
        absent_V: Tensor,
        group_V: Tensor,
        group_limits_B: Tensor,
        diversities_B: Tensor,
        head_VD: Tensor,
        head_bias_V: Tensor,
        *affinity: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [B, W, V], to be added to the beams' own, logprobs, and the score of each beam if it ends here.

        A request's diversity lowers the score of a code for every item of the slate that lies below it; logprobs stay
        what they are. `places_R`: of the first codes in the trail. `num_missing`: items that the slate lacks if it ends
        here. `affinity`: with item vectors the interest [N, D], the vectors [V, D] by code, and weight, bias and scale
        of the level's queries.
        """
        hidden_ND = self.norm(x_ND)
        logits_BWV = F.linear(hidden_ND, head_VD, head_bias_V).unflatten(0, (score_BW.shape[0], -1))
        if affinity:
            query_ND = self.query(hidden_ND, affinity[0], *affinity[2:])
            logits_BWV = logits_BWV + (query_ND @ affinity[1].T).view_as(logits_BWV)
        if self.score_mode == "legal_softmax":
            logits_BWV = logits_BWV + absent_V
        logprob_BWV = logits_BWV.log_softmax(-1)
        full_BWG = full_NG.unflatten(0, (score_BW.shape[0], -1))
        closed_BQV = dead_BV.unsqueeze(1) + closed(capped_beams(full_BWG), group_V)
        total_BWV = _broadcast_sum(logprob_BWV, closed_BQV)
        chosen_BWR = trail_NP.index_select(1, places_R).unflatten(0, (score_BW.shape[0], -1))
        code_BWR, change_BWR = _own_changes(chosen_BWR, child_code, left_BV, diversities_B)
        kept_BW = self.kept(score_BW, node_BW, settled_N1, num_missing, group_limits_B)
        return total_BWV.scatter_add(2, code_BWR, change_BWR), logprob_BWV, kept_BW


def capped_beams(full_BWG: Tensor) -> Tensor:
    """In the graph of a batch without caps (G is 1) those of one beam, since none is full: Q is 1. Else as they are.

    What follows then costs as much as for one beam. To the tracer Q is W; only what broadcasts may be made of it.
    """
    if not torch.compiler.is_exporting():
        return full_BWG
    (num_places_1,) = torch.onnx.ops.symbolic_multi_out(
        "Shape", (full_BWG,), {"start": 2, "end": 3}, dtypes=(torch.int64,), shapes=((1,),), version=19
    )
    begin_1, axis_1 = torch.tensor([0]), torch.tensor([1])
    end_1 = (num_places_1 - 1) * _MANY_BEAMS + 1
    return torch.onnx.ops.symbolic(
        "Slice", (full_BWG, begin_1, end_1, axis_1), dtype=full_BWG.dtype, shape=full_BWG.shape, version=13
    )


def _broadcast_sum(one: Tensor, other: Tensor) -> Tensor:
    """A sum of which the tracer shall not conclude that its terms are of one shape."""
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic("Add", (one, other), dtype=one.dtype, shape=one.shape, version=14)
    return one + other


def _own_changes(
    chosen_BWR: Tensor, child_code: Tensor, left_BV: Tensor, diversities_B: Tensor
) -> tuple[Tensor, Tensor]:
    """What each item of a slate changes about the score of its first code: the code, and the change, [B, W, R]."""
    num_requests, num_codes = left_BV.shape
    code_BWR = take(child_code, chosen_BWR.clamp(min=0)).to(torch.int64)
    offset_B11 = torch.arange(num_requests, device=left_BV.device)[:, None, None] * num_codes
    left_BWR = take(left_BV.flatten(), code_BWR + offset_B11)
    count_BWR = (chosen_BWR.unsqueeze(2) == chosen_BWR.unsqueeze(3)).sum(-1, dtype=left_BV.dtype)
    change_BWR = torch.where(left_BWR > count_BWR, 0.0, DEAD) - diversities_B[:, None, None]
    return code_BWR, torch.where(chosen_BWR >= 0, change_BWR, 0.0)


class Score(_Scores):
    """Scores the children of each beam's node, below the first level."""

    def forward(
        self,
        x_ND: Tensor,
        score_BW: Tensor,
        node_BW: Tensor,
        trail_NP: Tensor,
        places_R: Tensor,
        num_missing: Tensor,
        full_NG: Tensor,
        settled_N1: Tensor,
        child_begin: Tensor,
        child_code: Tensor,
        child_row: Tensor,
        child_group: Tensor,
        branch_C: Tensor,
        excluded_child_BWX: Tensor,
        change_BWX: Tensor,
        allowed_cumsum_FI: Tensor,
        filter_slots_B: Tensor,
        group_limits_B: Tensor,
        head_VD: Tensor,
        head_bias_V: Tensor,
        *affinity: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `ScoreRoot`, for the candidates [B, W, C] of each beam; then their children, and the scores on ending.

        `affinity`: with item vectors the interest [N, D], the vectors [M, D] of the level's children, and weight, bias
        and scale of the level's queries.
        """
        hidden_ND = self.norm(x_ND)
        logits_BWV = F.linear(hidden_ND, head_VD, head_bias_V).unflatten(0, (score_BW.shape[0], -1))
        candidates = open_nodes(
            node_BW,
            trail_NP.index_select(1, places_R).unflatten(0, (score_BW.shape[0], -1)),
            (child_begin, child_code, child_row, child_group),
            branch_C,
            Excluded(excluded_child_BWX, change_BWX),
            Filters(allowed_cumsum_FI, filter_slots_B),
            full_NG.unflatten(0, (score_BW.shape[0], -1)),
        )
        affinity_BWC = None
        if affinity:
            query_ND = self.query(hidden_ND, affinity[0], *affinity[2:])
            query_BWD1 = query_ND.unflatten(0, (score_BW.shape[0], -1)).unsqueeze(3)
            affinity_BWC = (take(affinity[1], candidates.child_BWC.clamp(min=0)) @ query_BWD1).squeeze(3)
        logprob_BWC = child_logprobs(logits_BWV, candidates, self.score_mode, affinity_BWC)
        total_BWC = logprob_BWC + candidates.dead_BWC
        kept_BW = self.kept(score_BW, node_BW, settled_N1, num_missing, group_limits_B)
        return total_BWC, logprob_BWC, candidates.child_BWC, kept_BW
