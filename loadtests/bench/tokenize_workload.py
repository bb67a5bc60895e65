"""What the tokenizer bench encodes: unit vectors from a mixture whose clusters have a long tail of sizes.

Legend: N items, C clusters, R items of a chunk, D width.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

CONFIG = Path(__file__).with_name("tokenize.toml")
_CHUNK_ITEMS = 1 << 15


@dataclass(frozen=True, kw_only=True)
class TokenizeWorkload:
    """`tokenize.toml`."""

    name: str
    num_items: tuple[int, ...]
    width: int
    num_threads: int
    items_per_cluster: int
    clusters_per_topic: int
    tail_exponent: float
    cluster_spread: float
    item_spread: float
    duplicate_share: float
    seed: int

    @classmethod
    def load(cls, path: Path = CONFIG) -> "TokenizeWorkload":
        """Reads the file; a missing or unknown key is a TypeError."""
        values: dict[str, Any] = tomllib.loads(path.read_text())
        return cls(**{**values, "num_items": tuple(values["num_items"])})

    def write_embeddings(self, path: Path, num_items: int) -> None:
        """Writes float32 unit vectors [N, D] as one .npy, chunk by chunk."""
        rng = np.random.default_rng([self.seed, num_items])
        num_clusters = max(num_items // self.items_per_cluster, 2)
        num_topics = max(num_clusters // self.clusters_per_topic, 2)
        topics = rng.standard_normal((num_topics, self.width), dtype=np.float32)
        centres_CD = topics[rng.integers(0, num_topics, num_clusters)]
        centres_CD += np.float32(self.cluster_spread) * rng.standard_normal(centres_CD.shape, dtype=np.float32)
        share_C = np.arange(1, num_clusters + 1) ** -self.tail_exponent
        share_C /= share_C.sum()
        out_ND = open_memmap(path, mode="w+", dtype=np.float32, shape=(num_items, self.width))
        for start in range(0, num_items, _CHUNK_ITEMS):
            count = min(_CHUNK_ITEMS, num_items - start)
            # a gamma law of shape 2: some items are typical of their cluster, others far out
            spread_R1 = rng.gamma(2.0, self.item_spread / 2, (count, 1)).astype(np.float32)
            rows_RD = centres_CD[rng.choice(num_clusters, count, p=share_C)]
            rows_RD += spread_R1 * rng.standard_normal(rows_RD.shape, dtype=np.float32)
            rows_RD /= np.linalg.norm(rows_RD, axis=1, keepdims=True)
            repeats = np.flatnonzero(rng.random(count) < self.duplicate_share)
            rows_RD[repeats] = rows_RD[rng.integers(0, count, len(repeats))]
            out_ND[start : start + count] = rows_RD
        out_ND.flush()
