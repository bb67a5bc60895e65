"""Whether a slate costs more in a larger catalog: one graph, catalogs of several sizes with equal branching, in turn.

With it SASRec over as many items, in the same engine on the same threads: what one would pick instead. Its product with
all items grows with the catalog; a beam search reads a few nodes of a trie.

Legend: B batch, T history length.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from rich.console import Console

from loadtests.bench.decode.graphs import export_graph, feeds_of
from loadtests.bench.decode.sasrec import SasRec
from loadtests.bench.decode.synthetic import BareCatalog, num_bytes, planted_sids
from loadtests.bench.decode.systems import ONNX_RUNTIME, load_engine
from loadtests.bench.decode.timing import System, interleaved, medians
from loadtests.bench.decode.workload import DecodeWorkload, Measured
from loadtests.bench.errors import BenchError
from loadtests.bench.result import Row
from model_export.evaluate.baselines.sasrec_config import SasRecConfig
from service.catalog import CatalogSnapshot

_OURS, _RIVAL = "slates", "sasrec"


@dataclass(frozen=True, kw_only=True)
class CatalogGrowth(DecodeWorkload):
    """Milliseconds a batch, by catalog size; `num_items` is the smallest."""

    more_items: tuple[int, ...]
    """The other sizes."""
    sasrec: SasRecConfig | None = None
    """The rival; None: none."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """As `DecodeWorkload.of`."""
        if "sasrec" in values:
            values = {**values, "sasrec": SasRecConfig(**values["sasrec"])}
        return super().of(values)

    def measure(self, console: Console) -> Measured:
        """Rows by size, and how many times longer a batch takes than with the smallest, and than the rival's.

        Raises:
            ValueError: a size that no trie of this branching has.
            BenchError: the catalogs differ in branching.
        """
        torch.set_num_threads(self.num_threads)
        sizes = (self.num_items, *self.more_items)
        console.print(f"{self.name}: building {len(sizes)} catalogs and the graph", highlight=False)
        catalogs = {size: self.catalog_of(size) for size in sizes}
        branches = {catalog.trie.max_branch for catalog in catalogs.values()}
        if len(branches) > 1:
            raise BenchError(f"catalogs of {sizes} items branch differently: {branches}")
        with tempfile.TemporaryDirectory() as folder:
            graph = export_graph(self.generator(), branches.pop(), Path(folder))
            run = load_engine(ONNX_RUNTIME, graph.path, self.num_threads)
        rivals = self._rivals(sizes)
        rows = [
            Row(workload=f"{self.name}, {size:,} items", system="arrays", value=num_bytes(catalog) / 2**20, unit="MiB")
            for size, catalog in catalogs.items()
        ]
        ratios: dict[str, float] = {}
        for beam_width, batch_size in self.shapes:
            systems: dict[str, System] = {}
            for size, catalog in catalogs.items():
                feeds = feeds_of(self, catalog, beam_width, batch_size)
                systems[f"{_OURS} {size}"] = partial(run, feeds)
            for size, rival in rivals.items():
                systems[f"{_RIVAL} {size}"] = rival(batch_size)
            console.print(f"{self.name}, beam {beam_width}, batch {batch_size}", highlight=False)
            times_s = medians(interleaved(self.num_rounds, systems, console))
            shape = f"beam {beam_width}, batch {batch_size}"
            rows += self._rows(shape, sizes, times_s)
            ratios |= _ratios(shape, sizes, times_s)
        return Measured(rows=rows, ratios=ratios, caveat=self._caveat())

    def catalog_of(self, num_items: int) -> CatalogSnapshot:
        """Random sids with a full node at every level."""
        return BareCatalog.snapshot(planted_sids(num_items, self.codebook_size, self.num_levels, self.seed))

    def _rivals(self, sizes: tuple[int, ...]) -> dict[int, Callable[[int], System]]:
        """By size: from a batch size to what decodes such a batch."""
        if self.sasrec is None:
            return {}
        exported = SasRec(self.sasrec, self.slate_size, self.seed)
        rivals: dict[int, Callable[[int], System]] = {}
        for size in sizes:
            ort_session = exported.session(size, self.num_threads)
            (name,) = (entry.name for entry in ort_session.get_inputs())

            def decoder(batch_size: int, size: int = size, run: Any = ort_session.run, name: str = name) -> System:
                rng = np.random.default_rng([self.seed, batch_size])
                rows_BT = rng.integers(0, size, (batch_size, self.history_length), dtype=np.int32)
                return lambda: run(None, {name: rows_BT})

            rivals[size] = decoder
        return rivals

    def _rows(self, shape: str, sizes: tuple[int, ...], times_s: dict[str, float]) -> list[Row]:
        return [
            Row(
                workload=f"{self.name}, {size:,} items, {shape}",
                system=system if system == _RIVAL else f"{ONNX_RUNTIME}, whole slates",
                value=times_s[f"{system} {size}"] * 1000,
                unit="ms a batch",
            )
            for size in sizes
            for system in (_OURS, _RIVAL)
            if f"{system} {size}" in times_s
        ]

    def _caveat(self) -> str:
        text = (
            f"{self.num_rounds} interleaved rounds, medians, {self.num_threads} threads, random weights and sids; "
            "every trie has a full node at each level, so that all are searched by one graph"
        )
        if self.sasrec is not None:
            text += f"; SASRec scores all items and takes the best {self.slate_size}, without softmax or exclusions"
        return text


def _ratios(shape: str, sizes: tuple[int, ...], times_s: dict[str, float]) -> dict[str, float]:
    smallest, *larger = sizes
    systems = [system for system in (_OURS, _RIVAL) if f"{system} {smallest}" in times_s]
    ratios = {
        f"{system}, time with {size:,} items over {smallest:,}, {shape}": times_s[f"{system} {size}"]
        / times_s[f"{system} {smallest}"]
        for system in systems
        for size in larger
    }
    if _RIVAL in systems:
        ratios |= {
            f"{_OURS} over {_RIVAL}, {size:,} items, {shape}": times_s[f"{_RIVAL} {size}"] / times_s[f"{_OURS} {size}"]
            for size in sizes
        }
    return ratios
