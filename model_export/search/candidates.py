"""Which codes may come next, and what they score: one step of the search over the live catalog.

Legend: B requests, W beams, C children of a node (padded to the largest branch), V codes of a level, R rows that a
beam has chosen (place 0 is a dummy), X excluded rows, F filter slots, N items, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

DEAD = -1e30
"""Score of a beam that does not exist; finite, so that arithmetic on it makes no NaN."""


def take(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]` along the first axis for any shape of int32 or int64 index.

    Written as an embedding look-up, because that exports to one Gather; indexing exports to GatherND, which is slower
    and takes int64 alone.
    """
    return F.embedding(index, values) if values.ndim > 1 else F.embedding(index, values.unsqueeze(1)).squeeze(-1)


def legal_children(
    node_BW: Tensor,
    rows_BWR: Tensor,
    child_begin: Tensor,
    child_row: Tensor,
    branch_C: Tensor,
    excluded: tuple[Tensor, Tensor, Tensor],
    code_of_child: Tensor,
    allowed_cumsum_FN: Tensor,
    filter_slots_B: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The children of each beam's trie node, and which of them still lead to an item that may be shown.

    A child is legal if its row range holds an allowed row that is neither excluded for the user nor in the beam's
    slate already. Counting rows, not marking nodes, is what keeps a beam from ever running into a dead end.

    Args:
        node_BW: Node of the level's parents.
        rows_BWR: Rows that the beam has chosen; negative: none.
        child_begin: [M + 1] first child of each node.
        child_row: [children + 1] first row of each child.
        branch_C: 0, 1, ..., C - 1.
        excluded: Excluded rows [B, X]; whether each counts (it passes the filter) [B, X]; its code at this level as
            one-hot floats [B, X, V].
        code_of_child: [children] the child's code.
        allowed_cumsum_FN: [F, N + 1] prefix sums of allowed rows.
        filter_slots_B: The filter of each request.

    Returns:
        First child of each node [B, W]; the children's codes, whether they exist in the catalog, and whether they are
        legal, each [B, W, C].
    """
    first_BW = take(child_begin, node_BW)
    end_BW = take(child_begin, node_BW + 1)
    exists_BWC = branch_C < (end_BW - first_BW).unsqueeze(-1)
    child_BWC = torch.where(exists_BWC, first_BW.unsqueeze(-1) + branch_C, 0)
    code_BWC = take(code_of_child, child_BWC).to(torch.int64)
    low_BWC = take(child_row, child_BWC)
    high_BWC = take(child_row, child_BWC + 1)
    offset_B11 = (filter_slots_B * allowed_cumsum_FN.shape[1])[:, None, None]
    cumsum = allowed_cumsum_FN.flatten()
    left_BWC = take(cumsum, offset_B11 + high_BWC) - take(cumsum, offset_B11 + low_BWC)

    excluded_BX, counts_BX, code_BXV = excluded
    row_B1X = excluded_BX.unsqueeze(1)
    inside_BWX = (row_B1X >= take(child_row, first_BW).unsqueeze(-1)) & (
        row_B1X < take(child_row, end_BW).unsqueeze(-1)
    )
    # A product with one-hot codes counts the excluded rows under each code for all beams at matrix speed.
    per_code_BWV = (inside_BWX & counts_BX.unsqueeze(1)).to(torch.float32) @ code_BXV
    left_BWC = left_BWC - per_code_BWV.gather(2, code_BWC).to(left_BWC.dtype)

    row_BW1R = rows_BWR.unsqueeze(2)
    chosen_BWCR = (row_BW1R >= low_BWC.unsqueeze(-1)) & (row_BW1R < high_BWC.unsqueeze(-1))
    left_BWC = left_BWC - chosen_BWCR.to(left_BWC.dtype).sum(-1)
    return first_BW, code_BWC, exists_BWC, exists_BWC & (left_BWC > 0)


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
