"""Runs the bundle's graph with ONNX Runtime.

Legend: B requests, W beams, K slate size, L levels, N items.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.bundle import Manifest
from service.catalog import CatalogSnapshot
from service.errors import RunnerError
from service.inference.runner import Batch, Decoded

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"


class OrtRunner:
    """One ONNX Runtime session over the generator's graph."""

    def __init__(
        self,
        manifest: Manifest,
        graph: Path,
        *,
        provider: str = CPU_PROVIDER,
        num_threads: int = 0,
        optimized_path: Path | None = None,
    ) -> None:
        """Loads the graph.

        Args:
            manifest: Of the graph's bundle.
            graph: The ONNX file.
            provider: The execution provider; never silently another one.
            num_threads: Of one run; 0: one per core.
            optimized_path: Where to write the optimised graph, for profiling.

        Raises:
            RunnerError: the graph does not load, or the provider is not there.
        """
        self._manifest = manifest
        self._provider = provider
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        if optimized_path is not None:
            options.optimized_model_filepath = str(optimized_path)
        if provider == CUDA_PROVIDER:
            ort.preload_dlls()
        if provider not in ort.get_available_providers():
            raise RunnerError(f"{provider} is not in this onnxruntime: {', '.join(ort.get_available_providers())}")
        try:
            self._ort_session = ort.InferenceSession(str(graph), options, providers=_with_fallback(provider))
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise RunnerError(f"{graph}: does not load: {error}") from error
        if provider not in self._ort_session.get_providers():
            # onnxruntime logs a line and goes on without the GPU; a service that was asked for one must not.
            raise RunnerError(
                f"{provider} was asked for, but onnxruntime fell back to {self._ort_session.get_providers()}"
            )

    @property
    def manifest(self) -> Manifest:
        """Of the bundle that the runner serves."""
        return self._manifest

    @property
    def provider(self) -> str:
        """The execution provider."""
        return self._provider

    def run(self, batch: Batch) -> Decoded:
        """Decodes one batch; see `Runner.run`."""
        feeds: dict[str, npt.NDArray[Any]] = {
            "history_codes": batch.history_codes_BTL,
            "history_actions": batch.history_actions_BT,
            "history_times": batch.history_times_BT,
            "history_values": batch.history_values_BT,
            "history_lengths": batch.history_lengths_B,
            "now": batch.now_B,
            "excluded_rows": batch.excluded_rows_BX,
            "filter_slots": batch.filter_slots_B,
            "allowed_cumsum": batch.allowed_cumsum_FN,
            "beam_slots": np.zeros(batch.beam_width, dtype=np.int32),
            **trie_feeds(batch.catalog),
        }
        if self._manifest.item_vector_width:
            feeds["history_rows"] = batch.history_rows_BT
            feeds |= {f"child_vector_{level}": table for level, table in enumerate(batch.catalog.child_vectors)}
        try:
            rows, valid, logprobs, scores = self._ort_session.run(self._manifest.graphs["generator"].outputs, feeds)
        except Exception as error:  # as above
            raise RunnerError(f"the graph failed on a batch of {len(batch.now_B)}: {error}") from error
        return Decoded(item_rows_BWK=rows, item_valid_BWK=valid, level_logprobs_BWKL=logprobs, scores_BW=scores)


def trie_feeds(catalog: CatalogSnapshot) -> dict[str, npt.NDArray[np.int32]]:
    """The catalog's trie under the graph's input names."""
    feeds = {"sids": catalog.sids_NL}
    trie = catalog.trie
    for level, (begin, code, row) in enumerate(zip(trie.child_begin, trie.child_code, trie.child_row, strict=True)):
        feeds |= {f"child_begin_{level}": begin, f"child_code_{level}": code, f"child_row_{level}": row}
    return feeds


def _with_fallback(provider: str) -> Sequence[str]:
    return [provider] if provider == CPU_PROVIDER else [provider, CPU_PROVIDER]
