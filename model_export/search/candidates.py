"""Which codes may come next, and what they score: one step of the search over the live catalog.

Legend: B requests, W beams, C children of a node (padded to the largest branch), V codes of a level, R rows that a
beam has chosen (place 0 is a dummy), G places for full groups, X excluded rows, F filter slots, N items, M nodes of a
level, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

DEAD = -1e30
"""Score of a beam that does not exist; finite, so that arithmetic on it makes no NaN."""


def take(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]` along the first axis for any shape of int32 or int64 index.

    In the graph one Gather: indexing exports to GatherND, which is slower and takes int64 alone, and an embedding
    look-up to reshapes around it.
    """
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            "Gather",
            (values, index),
            {"axis": 0},
            dtype=values.dtype,
            shape=(*index.shape, *values.shape[1:]),
            version=13,
        )
    return F.embedding(index, values) if values.ndim > 1 else F.embedding(index, values.unsqueeze(1)).squeeze(-1)


def legal_children(
    node_BW: Tensor,
    chosen: tuple[Tensor, Tensor],
    child_begin: Tensor,
    child_row: Tensor,
    branch_C: Tensor,
    excluded: tuple[Tensor, Tensor, Tensor],
    code_of_child: Tensor,
    allowed_cumsum_FN: Tensor,
    filter_slots_B: Tensor,
    caps: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The children of each beam's trie node, and which of them still lead to an item that may be shown.

    A child is legal if its row range holds an allowed row that is neither excluded for the user nor in the beam's
    slate already, and is not all of a group that the slate is full of. Counting rows, not marking nodes, is what keeps
    a beam from running into a dead end; only caps can lead into one, below a child of several groups.

    Args:
        node_BW: Node of the level's parents; negative: the beam has ended, and no child is legal.
        chosen: Rows that the beam has chosen, negative: none [B, W, R]; their codes at this level [B, W, R].
        child_begin: [M + 1] first child of each node.
        child_row: [children + 1] first row of each child.
        branch_C: 0, 1, ..., C - 1.
        excluded: Excluded rows [B, X]; whether each counts (it passes the filter) [B, X]; its code at this level as
            one-hot floats [B, X, V].
        code_of_child: [children] the child's code.
        allowed_cumsum_FN: [F, N + 1] prefix sums of allowed rows.
        filter_slots_B: The filter of each request.
        caps: Group that all rows below a child are of [children], -1: none or several; `full_groups` of each beam
            [B, W, G], where G is 1 in a batch without caps.

    Returns:
        First child of each node [B, W]; the children's codes, whether the catalog holds them, whether they are legal,
        and how many of the beam's rows lie below them, each [B, W, C].
    """
    open_BW = node_BW.clamp(min=0)
    first_BW = take(child_begin, open_BW)
    end_BW = take(child_begin, open_BW + 1)
    exists_BWC = branch_C < (end_BW - first_BW).unsqueeze(-1)
    child_BWC = torch.where(exists_BWC, first_BW.unsqueeze(-1) + branch_C, 0)
    code_BWC = take(code_of_child, child_BWC).to(torch.int64)
    low_BWC = take(child_row, child_BWC)
    high_BWC = take(child_row, child_BWC + 1)
    offset_B11 = (filter_slots_B * allowed_cumsum_FN.shape[1])[:, None, None]
    cumsum = allowed_cumsum_FN.flatten()
    left_BWC = take(cumsum, offset_B11 + high_BWC) - take(cumsum, offset_B11 + low_BWC)

    excluded_BX, counts_BX, code_BXV = excluded
    begin_BW1, stop_BW1 = (take(child_row, place_BW).unsqueeze(-1) for place_BW in (first_BW, end_BW))
    row_B1X = excluded_BX.unsqueeze(1)
    inside_BWX = (row_B1X >= begin_BW1) & (row_B1X < stop_BW1)
    # A product with one-hot codes counts the excluded rows under each code for all beams at matrix speed.
    per_code_BWV = (inside_BWX & counts_BX.unsqueeze(1)).to(torch.float32) @ code_BXV
    rows_BWR, code_BWR = chosen
    inside_BWR = ((rows_BWR >= begin_BW1) & (rows_BWR < stop_BW1)).to(left_BWC.dtype)
    none_BWV = torch.zeros_like(per_code_BWV, dtype=left_BWC.dtype)
    taken_BWV = none_BWV.scatter_add(2, code_BWR.to(torch.int64), inside_BWR)
    left_BWC = left_BWC - (per_code_BWV.to(left_BWC.dtype) + taken_BWV).gather(2, code_BWC)

    child_group, full_BWG = caps
    is_full_BWC = (take(child_group, child_BWC).unsqueeze(2) == full_BWG.unsqueeze(3)).any(2)
    legal_BWC = exists_BWC & (node_BW >= 0).unsqueeze(-1) & (left_BWC > 0) & ~is_full_BWC
    return first_BW, code_BWC, exists_BWC, legal_BWC, taken_BWV.gather(2, code_BWC)


def full_groups(rows_BWR: Tensor, row_group_N: Tensor, limit_B: Tensor, places_G: Tensor) -> Tensor:
    """The groups of which each beam's slate holds as many items as it may, and -2, which no group is: [B, W, G].

    Args:
        rows_BWR: Rows that the beam has chosen; negative: none.
        row_group_N: Group of each row, -1: none.
        limit_B: Most items of one group; 0: any number.
        places_G: Of the rows to look at: 0, 1, ...; the dummy's alone, 0, where nothing is capped.
    """
    group_BWR = torch.where(rows_BWR >= 0, take(row_group_N, rows_BWR.clamp(min=0)), -1)
    count_BWR = (group_BWR.unsqueeze(2) == group_BWR.unsqueeze(3)).sum(-1, dtype=limit_B.dtype)
    limit_B11 = limit_B[:, None, None]
    is_full_BWR = (group_BWR >= 0) & (limit_B11 > 0) & (count_BWR >= limit_B11)
    full_BWR = torch.where(is_full_BWR, group_BWR, -2)
    return full_BWR.index_select(2, places_G.clamp(max=rows_BWR.shape[2] - 1))


def child_logprobs(
    logits_BWV: Tensor, code_BWC: Tensor, exists_BWC: Tensor, score_mode: str, affinity_BWC: Tensor | None = None
) -> Tensor:
    """Logprob [B, W, C] of each child's code.

    `full_softmax` normalises over the whole codebook; `legal_softmax` over the children that exist in the catalog's
    trie, each with its affinity, if any. Filters and exclusions never renormalise.
    """
    if score_mode == "full_softmax":
        return logits_BWV.log_softmax(-1).gather(2, code_BWC)
    logits_BWC = logits_BWV.gather(2, code_BWC)
    if affinity_BWC is not None:
        logits_BWC = logits_BWC + affinity_BWC
    return torch.where(exists_BWC, logits_BWC, DEAD).log_softmax(-1)
