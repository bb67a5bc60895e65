"""The tokenizer's configuration."""

import math
from dataclasses import dataclass
from typing import Literal

Source = Literal["text", "collaborative", "fused", "given"]

# Room for a thousand times more sids than items: nearly every item then has a two-code prefix of its own, and new items
# find a free code near their vector. 256 codes a level for 4,000 to 16,000 items at three levels.
ROOM_PER_ITEM = 1024
MIN_ITEMS_PER_CODE = 4


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How item embeddings and semantic IDs are made."""

    num_levels: int = 3
    """Codes in a semantic ID."""
    codebook_size: int | tuple[int, ...] | None = None
    """Codes per level: one number, one per level, or None to choose a power of two from the catalog's size."""
    source: Source = "text"
    """Where item embeddings come from: text, co-occurrence of train events, both, or items.parquet `embedding`."""
    text_dim: int = 128
    """Width of the text embedding (truncated SVD of TF-IDF)."""
    collaborative_dim: int = 64
    """Width of the collaborative embedding (truncated SVD of PPMI)."""
    text_weight: float = 0.5
    """Share of the text part in the squared norm of a fused embedding; the rest is collaborative."""
    max_vocabulary: int = 50_000
    """Words that TF-IDF keeps, most frequent first."""
    window: int = 5
    """Co-occurrence counts items at most this many events apart, weighted by one over the distance."""
    kmeans_iterations: int = 20
    """Most iterations of plain k-means at each level."""
    balance_iterations: int = 6
    """Iterations of balanced k-means at each level."""
    refine_sweeps: int = 24
    """Sweeps that re-assign levels 2..L together after the first, greedy pass."""
    balance_tolerance: int = 1
    """Largest accepted difference between the sizes of two codes of a level; beyond it tokenize fails."""
    seed: int = 0
    """Seed of k-means and SVD."""

    def __post_init__(self) -> None:
        positive = ("num_levels", "text_dim", "collaborative_dim", "max_vocabulary", "window", "kmeans_iterations")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"tokenize.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("balance_iterations", "refine_sweeps", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"tokenize.{name} must not be negative, not {getattr(self, name)}")
        if self.balance_tolerance < 1:
            raise ValueError(f"tokenize.balance_tolerance must be at least 1, not {self.balance_tolerance}")
        if not 0.0 < self.text_weight < 1.0:
            raise ValueError(f"tokenize.text_weight must lie between 0 and 1, not {self.text_weight}")
        if self.source not in ("text", "collaborative", "fused", "given"):
            raise ValueError(f"tokenize.source must be text, collaborative, fused or given, not {self.source!r}")
        if isinstance(self.codebook_size, list | tuple):
            object.__setattr__(self, "codebook_size", tuple(self.codebook_size))
            if len(self.codebook_size) != self.num_levels:
                raise ValueError(
                    f"tokenize.codebook_size names {len(self.codebook_size)} levels, num_levels is {self.num_levels}"
                )
        sizes = self.codebook_size if isinstance(self.codebook_size, tuple) else (self.codebook_size,)
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(f"tokenize.codebook_size must be at least 1, not {self.codebook_size}")

    def codebook_sizes(self, num_items: int) -> tuple[int, ...]:
        """Codebook size of every level for a catalog of `num_items`.

        Raises ValueError where the sizes given cannot name every item.
        """
        if num_items < 1:
            raise ValueError("a catalog needs at least one item")
        if isinstance(self.codebook_size, tuple):
            sizes = self.codebook_size
        else:
            sizes = (self.codebook_size or chosen_size(num_items, self.num_levels),) * self.num_levels
        if math.prod(sizes) < num_items:
            raise ValueError(
                f"{num_items} items do not fit into {' x '.join(map(str, sizes))} = {math.prod(sizes)} semantic IDs: "
                "raise tokenize.codebook_size or tokenize.num_levels"
            )
        return sizes


def chosen_size(num_items: int, num_levels: int) -> int:
    """Power of two with room for ROOM_PER_ITEM sids an item, but with a few items for every code.

    Falls to the smallest size that holds all items in catalogs of a few dozen items.
    """
    roomy: int = 2 ** math.ceil(math.log2(num_items * ROOM_PER_ITEM) / num_levels)
    filled: int = 2 ** math.floor(math.log2(max(num_items // MIN_ITEMS_PER_CODE, 1)))
    smallest = 1
    while smallest**num_levels < num_items:
        smallest += 1
    return max(min(roomy, filled), smallest)
