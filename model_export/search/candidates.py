"""Which codes may come next, and what they score: one step of the search over the live catalog.

At the root all beams of a request share one table of children, so that is counted once a run and by code: `open_root`.
Below it every beam has a node of its own, with at most C children: `open_nodes`.

Legend: B requests, W beams, C candidates of a beam (the largest branch and a place before and behind it), V codes of
a level, R items that a beam has chosen (place 0 is a dummy), G places for full groups, Q beams or one, X excluded
rows, F filter slots, N items, M nodes of a level.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Filters:
    """Which rows a request may be shown, but for those that are excluded."""

    allowed_cumsum_FN: Tensor
    """Prefix sums of allowed rows, int32 [F, N + 1]."""
    slots_B: Tensor
    """The filter of each request."""

    def allowed_before(self, row: Tensor) -> Tensor:
        """How many allowed rows come before a row, for rows of any shape [B, ...]."""
        slot = self.slots_B.view(-1, *[1] * (row.ndim - 1))
        return take(self.allowed_cumsum_FN.flatten(), slot * self.allowed_cumsum_FN.shape[1] + row)


@dataclass(frozen=True)
class Excluded:
    """Rows that must not be shown."""

    child_BWX: Tensor
    """The child of the level below which each row lies, int32; negative: padding. The same for all beams."""
    change_BWX: Tensor
    """What leaving it out changes: -1 where it passes the request's filter, else 0."""


@dataclass(frozen=True)
class Root:
    """The root's children by code, for all beams of a request."""

    child_V: Tensor
    """The child of each code, int32; -1: no item has the code."""
    left_BV: Tensor
    """Rows below each code that are allowed and not excluded, int32."""
    dead_BV: Tensor
    """0 where any are left, else `DEAD`."""
    absent_V: Tensor
    """0 where an item has the code, else `DEAD`."""
    group_V: Tensor
    """Group that all rows below a code are of; -1: none, or several."""
    excluded_child_BX: Tensor
    """The child below which each excluded row lies; -1: padding."""


def open_root(
    excluded_BX: Tensor,
    change_BX: Tensor,
    code_BX: Tensor,
    child_code: Tensor,
    child_row: Tensor,
    child_group: Tensor,
    filters: Filters,
    num_codes: int,
) -> Root:
    """Counts what may be shown below every code of the first level.

    Args:
        excluded_BX: Excluded rows; negative: padding.
        change_BX: -1 where a row passes the request's filter, else 0; int32.
        code_BX: Their codes at this level, int64.
        child_code: [M] code of each child of the root.
        child_row: [M + 1] first row of each.
        child_group: [M] group of each.
        filters: Of the requests.
        num_codes: V.
    """
    child_M = torch.arange(child_code.shape[0], dtype=torch.int32, device=child_code.device)
    none_V = torch.full((num_codes,), -1, dtype=torch.int32, device=child_code.device)
    child_V = none_V.scatter(0, child_code.to(torch.int64), child_M)
    is_present_V = child_V >= 0
    known_V = child_V.clamp(min=0)
    begin_V = take(child_row, known_V)
    end_V = torch.where(is_present_V, take(child_row, known_V + 1), begin_V)
    left_BV = filters.allowed_before(end_V.unsqueeze(0)) - filters.allowed_before(begin_V.unsqueeze(0))
    left_BV = left_BV.scatter_add(1, code_BX, change_BX)
    return Root(
        child_V=child_V,
        left_BV=left_BV,
        dead_BV=torch.where(left_BV > 0, 0.0, DEAD),
        absent_V=torch.where(is_present_V, 0.0, DEAD),
        group_V=torch.where(is_present_V, take(child_group, known_V), -1),
        excluded_child_BX=torch.where(excluded_BX >= 0, take(child_V, code_BX), -1),
    )


def child_of_rows(
    row_BX: Tensor, parent_BX: Tensor, child_begin: Tensor, child_row: Tensor, branch_C: Tensor
) -> Tensor:
    """The child of each parent below which a row lies; -1 where the parent is negative. `branch_C`: 0, 1, ..."""
    node_BX = parent_BX.clamp(min=0)
    first_BX1, end_BX1 = (take(child_begin, place_BX).unsqueeze(2) for place_BX in (node_BX, node_BX + 1))
    # The row before which the node ends stands for children that it does not have: no row of the node reaches it.
    is_before_BXC = take(child_row, torch.minimum(first_BX1 + branch_C, end_BX1)) <= row_BX.unsqueeze(2)
    child_BX = first_BX1.squeeze(2) + is_before_BXC.sum(2, dtype=torch.int32) - 1
    return torch.where(parent_BX < 0, -1, child_BX)


@dataclass(frozen=True)
class Candidates:
    """The children of each beam's node, in the trie's order, and places for those that it does not have."""

    child_BWC: Tensor
    """Number of the child, int32; -1: none."""
    code_BWC: Tensor
    """Its code, int64; any where there is no child."""
    dead_BWC: Tensor
    """0 where it still leads to an item that may be shown, else `DEAD` or less."""


def open_nodes(
    node_BW: Tensor,
    chosen_BWR: Tensor,
    trie: tuple[Tensor, Tensor, Tensor, Tensor],
    branch_C: Tensor,
    excluded: Excluded,
    filters: Filters,
    full_BWG: Tensor,
) -> Candidates:
    """The children of each beam's trie node, and which of them still lead to an item that may be shown.

    A child is legal if its row range holds an allowed row that is neither excluded for the user nor in the beam's
    slate already, and is not all of a group that the slate is full of. Counting rows, not marking nodes, is what keeps
    a beam from running into a dead end; only caps can lead into one, below a child of several groups.

    Args:
        node_BW: Node of the level's parents; negative: the beam has ended, and no child is legal.
        chosen_BWR: The children of this level that the beam's items lie below; negative: none.
        trie: First child of each node [M + 1]; of the children code, first row (one more), and group that all rows
            below are of (-1: none or several).
        branch_C: 0, 0, 1, 2, ...: bounds, so that the first and the last candidate are never children.
        excluded: For the user.
        filters: Of the requests.
        full_BWG: `full_groups` of each beam, where G is 1 in a batch without caps.
    """
    child_begin, child_code, child_row, child_group = trie
    node_BW1 = node_BW.unsqueeze(2)
    open_BW1 = node_BW1.clamp(min=0)
    first_BW1 = take(child_begin, open_BW1)
    end_BW1 = torch.where(node_BW1 < 0, first_BW1, take(child_begin, open_BW1 + 1))
    # One bound more than candidates; those outside the node are empty ranges at its ends.
    bound_BWC = torch.minimum(first_BW1 + branch_C, end_BW1)
    before_BWC = filters.allowed_before(take(child_row, bound_BWC))
    left_BWC = before_BWC[:, :, 1:] - before_BWC[:, :, :-1]
    # What is outside the node is counted at the first and the last candidate, where nothing is left anyway.
    last = branch_C.shape[0] - 2
    place_BWX = torch.cat([excluded.child_BWX, chosen_BWR], 2) - (first_BW1 - 1)
    change_BWX = torch.cat([excluded.change_BWX, chosen_BWR * 0 - 1], 2)
    left_BWC = left_BWC.scatter_add(2, place_BWX.clamp(0, last).to(torch.int64), change_BWX)

    exists_BWC = bound_BWC[:, :, 1:] > bound_BWC[:, :, :-1]
    child_BWC = torch.where(exists_BWC, bound_BWC[:, :, :-1], -1)
    known_BWC = child_BWC.clamp(min=0)
    closed_BWC = closed(full_BWG, take(child_group, known_BWC))
    return Candidates(
        child_BWC=child_BWC,
        code_BWC=take(child_code, known_BWC).to(torch.int64),
        dead_BWC=torch.where(left_BWC > 0, closed_BWC, DEAD),
    )


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


def closed(full_BWG: Tensor, group: Tensor) -> Tensor:
    """`DEAD` for candidates all of whose rows are of a full group, else 0, [B, W, C]; `group` [B, W, C] or [V]."""
    is_full_BWGC = group.unsqueeze(-2) == full_BWG.unsqueeze(3)
    # Of several places at most two hold one group; a sum is less work than whether there is any.
    return torch.where(is_full_BWGC, DEAD, 0.0).sum(2)


def child_logprobs(
    logits_BWV: Tensor, candidates: Candidates, score_mode: str, affinity_BWC: Tensor | None = None
) -> Tensor:
    """Logprob [B, W, C] of each child's code.

    `full_softmax` normalises over the whole codebook; `legal_softmax` over the children that exist in the catalog's
    trie, each with its affinity, if any. Filters and exclusions never renormalise.
    """
    if score_mode == "full_softmax":
        return logits_BWV.log_softmax(-1).gather(2, candidates.code_BWC)
    logits_BWC = logits_BWV.gather(2, candidates.code_BWC)
    if affinity_BWC is not None:
        logits_BWC = logits_BWC + affinity_BWC
    return torch.where(candidates.child_BWC >= 0, logits_BWC, DEAD).log_softmax(-1)
