"""What the decoder bench decodes: random sids, a random model, full histories.

Legend: B batch, T history length, L levels, N items.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_export.model import Generator, GeneratorSpec, HistoryBatch, ModelConfig
from model_export.model.history import NUM_RESERVED_CODES
from service.catalog import CatalogSnapshot
from service.domain import Item

CONFIG = Path(__file__).with_name("decode.toml")


@dataclass(frozen=True, kw_only=True)
class DecodeWorkload:
    """`decode.toml`."""

    name: str
    num_threads: int
    num_rounds: int
    num_items: int
    codebook_size: int
    num_levels: int
    slate_size: int
    history_length: int
    beam_width: int
    batch_sizes: tuple[int, ...]
    seed: int
    model: ModelConfig

    @classmethod
    def load(cls, path: Path = CONFIG) -> "DecodeWorkload":
        """Reads the file; a missing or unknown key is a TypeError."""
        values: dict[str, Any] = tomllib.loads(path.read_text())
        model = ModelConfig(**values.pop("model"))
        return cls(**{**values, "batch_sizes": tuple(values["batch_sizes"]), "model": model})

    def catalog(self) -> CatalogSnapshot:
        """Distinct random sids."""
        rng = np.random.default_rng(self.seed)
        space = self.codebook_size**self.num_levels
        numbers = rng.choice(space, self.num_items, replace=False)
        sids = np.stack(np.unravel_index(numbers, (self.codebook_size,) * self.num_levels), 1).astype(np.int32)
        return CatalogSnapshot.build([Item(item_id=str(row)) for row in range(self.num_items)], sids)

    def generator(self) -> Generator:
        """Random weights: the work does not depend on them."""
        torch.manual_seed(self.seed)
        spec = GeneratorSpec(
            codebook_sizes=(self.codebook_size,) * self.num_levels,
            slate_size=self.slate_size,
            history_length=self.history_length,
            value_edges=((),),
            has_times=True,
        )
        return Generator(self.model, spec).eval().requires_grad_(False)

    def history(self, catalog: CatalogSnapshot, batch_size: int) -> HistoryBatch:
        """Full histories of random items, an hour apart."""
        rng = np.random.default_rng([self.seed, batch_size])
        rows_BT = rng.integers(0, catalog.num_items, (batch_size, self.history_length))
        times_BT = np.arange(self.history_length, dtype=np.int64) * 3_600_000 + np.zeros(
            (batch_size, 1), dtype=np.int64
        )
        return HistoryBatch(
            codes_BTL=torch.from_numpy(catalog.sids_NL[rows_BT] + np.int32(NUM_RESERVED_CODES)),
            actions_BT=torch.ones(rows_BT.shape, dtype=torch.int32),
            times_BT=torch.from_numpy(times_BT),
            values_BT=torch.full(rows_BT.shape, torch.nan),
            lengths_B=torch.full((batch_size,), self.history_length, dtype=torch.int32),
            now_B=torch.full((batch_size,), self.history_length * 3_600_000, dtype=torch.int64),
        )
