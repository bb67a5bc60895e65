"""What `tokenize` writes and the later stages read.

Shapes: N items, L levels, V codes, D width.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_export.tokenizer.groups import dense_rows
from model_export.tokenizer.targets import CodeArray, FloatArray
from service.bundle.item_encoder import ItemEncoder


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenization:
    """Sids of all items in the order of items.parquet, with what they were made from."""

    sids_NL: CodeArray
    codebooks: tuple[FloatArray, ...]
    """One [V_l, D] per level; the embedding of an item is near the sum of its centroids."""
    embeddings_ND: FloatArray
    encoder: ItemEncoder
    report: dict[str, Any]

    @property
    def num_items(self) -> int:
        return len(self.sids_NL)

    @property
    def num_levels(self) -> int:
        return len(self.codebooks)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """V of every level."""
        return tuple(len(codebook_VD) for codebook_VD in self.codebooks)

    @property
    def max_branch(self) -> tuple[int, ...]:
        """Most children that any prefix has, per level."""
        return max_branch(self.sids_NL)

    def save(self, out_dir: str | Path) -> None:
        """Writes sids.npy, codebooks.npz, embeddings.npy, item_encoder.npz and report.json."""
        out_dir = Path(out_dir)
        out_dir.mkdir(parents=True, exist_ok=True)
        np.save(out_dir / "sids.npy", self.sids_NL)
        levels: dict[str, Any] = {f"level_{level}": codebook for level, codebook in enumerate(self.codebooks)}
        np.savez(out_dir / "codebooks.npz", **levels)
        np.save(out_dir / "embeddings.npy", self.embeddings_ND)
        self.encoder.save(out_dir / "item_encoder.npz")
        (out_dir / "report.json").write_text(json.dumps(self.report, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenization":
        """Reads what `save` wrote; ValueError where the directory is none or is damaged."""
        path = Path(path)
        try:
            with (path / "codebooks.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                codebooks = tuple(file[f"level_{level}"] for level in range(len(file.files)))
            return cls(
                sids_NL=np.load(path / "sids.npy", allow_pickle=False),
                codebooks=codebooks,
                embeddings_ND=np.load(path / "embeddings.npy", allow_pickle=False),
                encoder=ItemEncoder.load(path / "item_encoder.npz"),
                report=json.loads((path / "report.json").read_text(encoding="utf-8")),
            )
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path}: not a directory that tokenize wrote: {error}") from error


def max_branch(sids_NL: CodeArray) -> tuple[int, ...]:
    """Most distinct children under one prefix, for prefixes of 0, 1, ... L - 1 codes."""
    branches = []
    for level in range(sids_NL.shape[1]):
        _, first = np.unique(dense_rows(sids_NL[:, : level + 1]), return_index=True)
        _, children = np.unique(dense_rows(sids_NL[first, :level]), return_counts=True)
        branches.append(int(children.max()))
    return tuple(branches)
