"""Training losses of the generator.

Legend: B batch, K slate size, L levels, V codes of a level, C children of a trie node.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model_export.model.config import ScoreMode
from model_export.model.trie import TriePaths


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
            node_BK = node_BKL[:, :, level]
            child_BKC, exists_BKC = paths.children(level, node_BK)
            logits_BKC = logits_BKV.float().gather(2, paths.child_code[level][child_BKC])
            logits_BKC = logits_BKC.masked_fill(~exists_BKC, -torch.inf)
            target_BK = node_BKL[:, :, level + 1] - paths.child_begin[level][node_BK]
            loss_BK = F.cross_entropy(logits_BKC.flatten(0, 1), target_BK.flatten(), reduction="none")
        losses.append(loss_BK.view_as(valid_BK))
    return torch.stack(losses, 2) * valid_BK.unsqueeze(2)
