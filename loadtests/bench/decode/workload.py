"""What the decoder bench decodes: random sids, a random model, full histories. One `.toml` a workload.

A kind of measurement is a subclass of `Workload` with the settings that it needs, and `measure`.

Legend: B batch, T history length, L levels, N items, X excluded rows.
"""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from loadtests.bench.result import Row
from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.generator import Generator, HistoryBatch
from model_export.model.history import NUM_RESERVED_CODES
from service.catalog import CatalogSnapshot
from service.domain import Item
from service.inference.runner import NO_ROW


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one workload gives to the run's result."""

    rows: list[Row]
    ratios: dict[str, float] = field(default_factory=dict)
    caveat: str
    """How it was measured, and what the figures do not say."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The protocol of every workload, and what all of them name."""

    name: str
    num_threads: int
    num_rounds: int

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the file; a missing or unknown key is a TypeError, a size that cannot be a ValueError."""
        return cls.of(tomllib.loads(path.read_text()))

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """From the file's values; lists become tuples."""
        return cls(**{name: _frozen(value) for name, value in values.items()})

    def __post_init__(self) -> None:
        for name in ("num_threads", "num_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.name}: {name} must be at least 1, not {getattr(self, name)}")

    def measure(self, console: Console) -> Measured:
        """Measures; says on the console what it is at.

        Raises:
            BenchError: the figures would mean nothing.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DecodeWorkload(Workload):
    """A search problem and a model."""

    num_items: int
    codebook_size: int
    num_levels: int
    slate_size: int
    history_length: int
    shapes: tuple[tuple[int, int], ...]
    """Beam width and batch size of each measurement."""
    num_excluded: int
    """Rows that each request excludes; the service excludes what a user has seen."""
    seed: int
    model: ModelConfig

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """As `Workload.of`."""
        return super().of({**values, "model": ModelConfig(**values["model"])} if "model" in values else values)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_items", "codebook_size", "num_levels", "slate_size", "history_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.name}: {name} must be at least 1, not {getattr(self, name)}")
        if self.num_items > self.codebook_size**self.num_levels:
            raise ValueError(f"{self.name}: {self.num_items} items, but {self.codebook_size}^{self.num_levels} sids")
        if not 0 <= self.num_excluded < self.num_items:
            raise ValueError(f"{self.name}: cannot exclude {self.num_excluded} of {self.num_items} items")

    def catalog(self) -> CatalogSnapshot:
        """Distinct random sids."""
        rng = np.random.default_rng(self.seed)
        space = self.codebook_size**self.num_levels
        numbers = rng.choice(space, self.num_items, replace=False)
        sids = np.stack(np.unravel_index(numbers, (self.codebook_size,) * self.num_levels), 1).astype(np.int32)
        return CatalogSnapshot.build([Item(item_id=str(row)) for row in range(self.num_items)], sids)

    @property
    def spec(self) -> GeneratorSpec:
        """The generator's, for one kind of event without a value."""
        return GeneratorSpec(
            codebook_sizes=(self.codebook_size,) * self.num_levels,
            slate_size=self.slate_size,
            history_length=self.history_length,
            value_edges=((),),
            has_times=True,
        )

    def generator(self) -> Generator:
        """Random weights: the work does not depend on them."""
        torch.manual_seed(self.seed)
        return Generator(self.model, self.spec).eval().requires_grad_(False)

    def history(self, sids_NL: npt.NDArray[np.int32], batch_size: int) -> HistoryBatch:
        """Full histories of random items, an hour apart."""
        rng = np.random.default_rng([self.seed, batch_size])
        rows_BT = rng.integers(0, len(sids_NL), (batch_size, self.history_length))
        ages_BT = np.tile(np.arange(self.history_length, 0, -1, dtype=np.int32) * 3600, (batch_size, 1))
        return HistoryBatch(
            codes_BTL=torch.from_numpy(sids_NL[rows_BT] + np.int32(NUM_RESERVED_CODES)),
            actions_BT=torch.ones(rows_BT.shape, dtype=torch.int32),
            ages_BT=torch.from_numpy(ages_BT),
            values_BT=torch.full(rows_BT.shape, torch.nan),
            lengths_B=torch.full((batch_size,), self.history_length, dtype=torch.int32),
        )

    def excluded_rows(self, num_items: int, batch_size: int) -> npt.NDArray[np.int32]:
        """Distinct random rows [B, X]; one column of `NO_ROW` where nothing is excluded."""
        if not self.num_excluded:
            return np.full((batch_size, 1), NO_ROW, dtype=np.int32)
        rng = np.random.default_rng([self.seed, batch_size, self.num_excluded])
        return np.stack([rng.choice(num_items, self.num_excluded, replace=False) for _ in range(batch_size)]).astype(
            np.int32
        )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(entry) for entry in value) if isinstance(value, list) else value
