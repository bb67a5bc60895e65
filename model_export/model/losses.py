"""Training losses of the generator.

Legend: B batch, K slate size, L levels, V codes of a level, C children of a trie node.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model_export.model.config import ScoreMode
from service.catalog import CatalogSnapshot


@dataclass(frozen=True, kw_only=True)
class TriePaths:
    """The trie as the loss needs it: the node of every row at every depth, and the children of every node."""

    node_NL: Tensor
    """Node at depth l of each row, [N, L + 1]; depth 0 is the root."""
    child_begin: tuple[Tensor, ...]
    """Per level [M_l + 1]."""
    child_code: tuple[Tensor, ...]
    """Per level [M_(l+1)]."""
    max_branch: tuple[int, ...]

    @classmethod
    def of(cls, catalog: CatalogSnapshot, device: torch.device) -> "TriePaths":
        """Reads the paths off a catalog snapshot."""
        rows_N = torch.arange(catalog.num_items)
        starts = [torch.zeros(1, dtype=torch.int64), *(torch.from_numpy(row).long() for row in catalog.trie.child_row)]
        nodes = [torch.searchsorted(start, rows_N, right=True) - 1 for start in starts]
        return cls(
            node_NL=torch.stack(nodes, 1).to(device),
            child_begin=tuple(torch.from_numpy(begin).long().to(device) for begin in catalog.trie.child_begin),
            child_code=tuple(torch.from_numpy(code).long().to(device) for code in catalog.trie.child_code),
            max_branch=catalog.trie.max_branch,
        )


def next_code_loss(
    logits: list[Tensor], rows_BK: Tensor, codes_BKL: Tensor, paths: TriePaths, score_mode: ScoreMode
) -> Tensor:
    """Cross-entropy of the next code, per code [B, K, L]; zero where the target slate has ended.

    `full_softmax` normalises over the codebook, `legal_softmax` over the children of the target's trie node: the same
    as `model_export.search.candidates.child_logprobs` does when decoding.

    Args:
        logits: Per level [B, K, V], from teacher forcing.
        rows_BK: Target rows; negative where the slate has ended.
        codes_BKL: Their codes.
        paths: Of the catalog that the targets belong to.
        score_mode: What to normalise over.
    """
    valid_BK = rows_BK >= 0
    node_BKL = paths.node_NL[rows_BK.clamp(min=0)]
    losses = []
    for level, logits_BKV in enumerate(logits):
        if score_mode == "full_softmax":
            loss_BK = F.cross_entropy(
                logits_BKV.float().flatten(0, 1), codes_BKL[:, :, level].flatten(), reduction="none"
            )
        else:
            begin = paths.child_begin[level]
            node_BK = node_BKL[:, :, level]
            first_BK = begin[node_BK]
            branch_C = torch.arange(paths.max_branch[level], device=rows_BK.device)
            exists_BKC = branch_C < (begin[node_BK + 1] - first_BK).unsqueeze(-1)
            child_BKC = torch.where(exists_BKC, first_BK.unsqueeze(-1) + branch_C, 0)
            logits_BKC = logits_BKV.float().gather(2, paths.child_code[level][child_BKC])
            logits_BKC = logits_BKC.masked_fill(~exists_BKC, -torch.inf)
            target_BK = node_BKL[:, :, level + 1] - first_BK
            loss_BK = F.cross_entropy(logits_BKC.flatten(0, 1), target_BK.flatten(), reduction="none")
        losses.append(loss_BK.view_as(valid_BK))
    return torch.stack(losses, 2) * valid_BK.unsqueeze(2)
