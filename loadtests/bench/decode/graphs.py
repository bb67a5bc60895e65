"""From a generator to a loaded graph and the arrays that it takes; needs neither OpenVINO nor Hugging Face.

Legend: B batch, L levels, X excluded rows, N items.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from loadtests.bench.decode.workload import DecodeWorkload
from model_export.model.generator import Generator
from model_export.onnx.assemble import assemble
from model_export.onnx.pieces import export_pieces
from model_export.onnx.weights import graph_file, save_graphs
from model_export.search.driver import HISTORY_INPUTS
from service.bundle.manifest import Purpose
from service.catalog import CatalogSnapshot
from service.inference.feeds import trie_feeds
from service.inference.ort_runner import CPU_PROVIDER, session_options

Feeds = dict[str, npt.NDArray[Any]]
"""What a graph is given, by the names of its inputs."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A generator's graph on disk."""

    path: Path
    export_s: float
    """To trace the pieces, to assemble them and to write the file."""
    num_nodes: int


def export_graph(generator: Generator, max_branch: tuple[int, ...], folder: Path) -> Graph:
    """Writes the graph and its weights into the folder."""
    path = folder / graph_file("generator")
    started_s = time.perf_counter()
    only: tuple[Purpose, ...] = ("generator",)
    model = assemble(generator, export_pieces(generator, purposes=only), max_branch, purposes=only)["generator"]
    save_graphs({"generator": model}, folder)
    return Graph(path=path, export_s=time.perf_counter() - started_s, num_nodes=len(model.graph.node))


def in_onnx_runtime(path: Path, num_threads: int) -> ort.InferenceSession:
    """The graph on the CPU, as the service loads it."""
    return ort.InferenceSession(str(path), session_options(CPU_PROVIDER, num_threads), providers=[CPU_PROVIDER])


def feeds_of(workload: DecodeWorkload, catalog: CatalogSnapshot, beam_width: int, batch_size: int) -> Feeds:
    """The inputs of one run: the workload's histories and exclusions against the catalog."""
    history = workload.history(catalog.sids_NL, batch_size)
    return {
        **{name: value.numpy() for name, value in zip(HISTORY_INPUTS, history.as_args(), strict=True)},
        "excluded_rows": workload.excluded_rows(len(catalog.sids_NL), batch_size),
        "filter_slots": np.zeros(batch_size, dtype=np.int32),
        "allowed_cumsum": catalog.allowed_cumsum()[None],
        "group_limits": np.zeros(batch_size, dtype=np.int32),
        "cap_slots": np.zeros(1, dtype=np.int32),
        "diversities": np.zeros(batch_size, dtype=np.float32),
        "beam_slots": np.zeros(beam_width, dtype=np.int32),
        **trie_feeds(catalog),
    }
