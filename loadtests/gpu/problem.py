"""A model with its graph on disk, and batches for it, as a runner and the eager search take them.

Legend: B requests, T history length.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from loadtests.bench.decode.graphs import Graph, export_graph
from loadtests.bench.decode.synthetic import BareCatalog, planted_sids
from loadtests.bench.decode.workload import DecodeWorkload
from model_export.model.generator import HistoryBatch
from model_export.onnx.weights import graph_file
from model_export.search.driver import graph_inputs
from model_export.search.eager import BeamSearch
from service.bundle import Manifest
from service.inference.feeds import OUTPUTS
from service.inference.runner import NO_ROW, Batch


class Problem:
    """One of the workloads of `gpu.toml`."""

    def __init__(self, workload: DecodeWorkload, folder: Path) -> None:
        """Draws weights and catalog; the graph goes into the folder when it is first asked for."""
        self.workload, self._folder = workload, folder
        self.generator = workload.generator()
        sids_NL = planted_sids(workload.num_items, workload.codebook_size, workload.num_levels, workload.seed)
        self.catalog = BareCatalog.snapshot(sids_NL)
        self._cumsum_FN = self.catalog.allowed_cumsum()[None]  # one array for all batches, as a snapshot's is
        self.manifest = _draft_manifest(workload, self.catalog.trie.max_branch)

    @cached_property
    def graph(self) -> Graph:
        """Exported."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return export_graph(self.generator, self.catalog.trie.max_branch, self._folder)

    def history(self, batch_size: int, length: int, seed: int = 0) -> HistoryBatch:
        """Full histories of that length."""
        workload = replace(self.workload, history_length=length, seed=self.workload.seed + seed)
        return workload.history(self.catalog.sids_NL, batch_size)

    def batch(self, beam_width: int, batch_size: int, length: int, seed: int = 0) -> Batch:
        """The same histories for a runner, with the workload's exclusions."""
        history = self.history(batch_size, length, seed)
        workload = replace(self.workload, seed=self.workload.seed + seed)
        return Batch(
            history_codes_BTL=history.codes_BTL.numpy(),
            history_rows_BT=np.full(history.actions_BT.shape, NO_ROW, dtype=np.int32),  # read with item vectors alone
            history_actions_BT=history.actions_BT.numpy(),
            history_ages_BT=history.ages_BT.numpy(),
            history_values_BT=history.values_BT.numpy(),
            history_lengths_B=history.lengths_B.numpy(),
            excluded_rows_BX=workload.excluded_rows(self.workload.num_items, batch_size),
            filter_slots_B=np.zeros(batch_size, dtype=np.int32),
            allowed_cumsum_FN=self._cumsum_FN,
            group_limits_B=np.zeros(batch_size, dtype=np.int32),
            diversities_B=np.zeros(batch_size, dtype=np.float32),
            beam_width=beam_width,
            catalog=self.catalog,
        )

    def eager(self, device: torch.device) -> BeamSearch:
        """The search in PyTorch, moved there."""
        return BeamSearch(self.generator.to(device), self.catalog)


def on_device(history: HistoryBatch, device: torch.device) -> HistoryBatch:
    """Moved there."""
    arrays = {name: value.to(device) for name, value in vars(history).items() if value is not None}
    return HistoryBatch(**arrays)


def _draft_manifest(workload: DecodeWorkload, max_branch: tuple[int, ...]) -> Manifest:
    spec = workload.spec
    inputs = graph_inputs(spec.num_levels, has_vectors=False)
    file = graph_file("generator")
    graph = {"file": file, "precision": "float32", "inputs": inputs, "outputs": OUTPUTS}
    return Manifest.model_validate(
        {
            "model_version": "gpu-check",
            "created": "2026-01-01T00:00:00+00:00",
            "files": {file: "draft"},
            "num_levels": spec.num_levels,
            "codebook_sizes": spec.codebook_sizes,
            "max_branch": max_branch,
            "slate_size": spec.slate_size,
            "beam_width": 1,
            "max_beam_width": 1024,
            "history_length": spec.history_length,
            "actions": [{"name": "view"}],
            "default_action": "view",
            "score_mode": workload.model.score_mode,
            "has_times": spec.has_times,
            "graphs": {"generator": graph},
            "golden_tolerance": {"float32": {"logprob_abs": 1e-4}},
            "recipe": {},
            "commit": "unknown",
            "seed": workload.seed,
            "data_sha256": "0" * 64,
        }
    )
