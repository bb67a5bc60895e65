"""The trie of a training catalog as tensors.

Legend: N items (rows), L levels, M nodes of a level, B batch, K slate size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.catalog import CatalogSnapshot


@dataclass(frozen=True, kw_only=True)
class TriePaths:
    """The trie as training needs it: the node of every row at every depth, and the children of every node."""

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
        paths = cls(
            node_NL=torch.stack(nodes, 1),
            child_begin=tuple(torch.from_numpy(begin).long() for begin in catalog.trie.child_begin),
            child_code=tuple(torch.from_numpy(code).long() for code in catalog.trie.child_code),
            max_branch=catalog.trie.max_branch,
        )
        return paths.to(device)

    def to(self, device: torch.device) -> "TriePaths":
        """The same on a device."""
        return TriePaths(
            node_NL=self.node_NL.to(device),
            child_begin=tuple(begin.to(device) for begin in self.child_begin),
            child_code=tuple(code.to(device) for code in self.child_code),
            max_branch=self.max_branch,
        )

    def children(self, level: int, node: Tensor) -> tuple[Tensor, Tensor]:
        """The children [..., C] of nodes [...] of a level, and which of these places hold one (others: child 0)."""
        begin = self.child_begin[level]
        first = begin[node]
        branch_C = torch.arange(self.max_branch[level], device=node.device)
        exists = branch_C < (begin[node + 1] - first).unsqueeze(-1)
        return torch.where(exists, first.unsqueeze(-1) + branch_C, 0), exists

    def walk(self, codes_BKL: Tensor) -> Tensor:
        """The node [B, K, L + 1] at every depth of the sids, which must be the catalog's."""
        node = torch.zeros_like(codes_BKL[:, :, 0])
        nodes = [node]
        for level in range(codes_BKL.shape[2]):
            child, exists = self.children(level, node)
            is_next = exists & (self.child_code[level][child] == codes_BKL[:, :, level : level + 1])
            node = child.gather(2, is_next.to(torch.int8).argmax(2, keepdim=True)).squeeze(2)
            nodes.append(node)
        return torch.stack(nodes, 2)
