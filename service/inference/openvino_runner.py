"""Runs the bundle's graphs with OpenVINO: the same files, on processors whose bfloat16 units ONNX Runtime leaves idle.

Legend: B requests.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import openvino as ov

from service.bundle import Manifest
from service.bundle.manifest import Precision, Purpose
from service.errors import RunnerError
from service.inference.feeds import decoded, graph_feeds, graph_spec
from service.inference.openvino_experts import experts_extension, reading_a_graph
from service.inference.runner import Batch, Decoded

_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
PRECISIONS: tuple[Precision, ...] = tuple(_HINTS)


@cache
def one_core() -> ov.Core:
    """OpenVINO in this process; never make another `ov.Core`.

    Each gives the calling thread a stack for signals of its own, and takes it away when the core ends. If the older of
    two ends first, the thread is left with a stack that is gone, and the next signal, be it SIGTERM, kills the process.
    """
    core = ov.Core()
    core.add_extension(experts_extension())
    return core


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16."""
    return "BF16" in one_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_graph(graph: Path, precision: Precision, num_threads: int) -> ov.CompiledModel:
    """The graph on the CPU, as the runner serves it. `RuntimeError` where OpenVINO cannot load it."""
    settings = {
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    with reading_a_graph():
        return one_core().compile_model(graph, "CPU", settings)


def _reason(error: RuntimeError) -> str:
    """What OpenVINO says, without the places in its sources where it noticed."""
    lines = [line for line in str(error).splitlines() if not line.startswith(("Exception from", "Check '"))]
    return " ".join(" ".join(lines or [str(error)]).split())


@dataclass(frozen=True, slots=True)
class _Compiled:
    """One infer request, and the types that it takes."""

    infer_request: ov.InferRequest
    dtypes: dict[str, npt.DTypeLike]


class OpenVinoRunner:
    """A compiled model on the CPU and one infer request for each graph: for one thread at a time, as `Runner` says."""

    def __init__(
        self, manifest: Manifest, folder: Path, *, precision: Precision = "float32", num_threads: int = 0
    ) -> None:
        """Loads and compiles the generator's graph.

        Args:
            manifest: Of the bundle, whose graphs are in float32.
            folder: Where its files lie.
            precision: Of the network: `float32`, or `bfloat16` where the processor has it. Log-softmax, scores and the
                choice of beams are float32 either way.
            num_threads: Of one run; 0: one per core.

        Raises:
            RunnerError: the graph does not load, or the precision is not there; never silently another one.
        """
        self._manifest, self._folder = manifest, folder
        self._precision, self._num_threads = precision, num_threads
        self._compiled: dict[Purpose, _Compiled] = {}
        self._loading = Lock()
        if precision not in _HINTS:
            raise RunnerError(f"OpenVINO runs in {' or '.join(PRECISIONS)} here, not in {precision}")
        if precision == "bfloat16" and not has_bfloat16():
            raise RunnerError("this processor has no bfloat16: use float32")
        self.load("generator")

    @property
    def manifest(self) -> Manifest:
        """Of the bundle that the runner serves."""
        return self._manifest

    @property
    def provider(self) -> str:
        """The engine."""
        return "OpenVINO"

    @property
    def precision(self) -> Precision:
        """See `Runner.precision`."""
        return self._precision

    def load(self, purpose: Purpose) -> None:
        """Makes a graph ready to run; see `Runner.load`."""
        with self._loading:
            if purpose not in self._compiled:
                self._compiled[purpose] = self._opened(purpose)

    def run(self, batch: Batch) -> Decoded:
        """Decodes one batch; see `Runner.run`."""
        self.load(batch.purpose)
        compiled = self._compiled[batch.purpose]
        feeds = graph_feeds(self._manifest, batch)
        for name, dtype in compiled.dtypes.items():
            # It would convert without a word, and cut off what does not fit.
            if feeds[name].dtype != dtype:
                raise RunnerError(f"{name} is {feeds[name].dtype}, the graph takes {dtype}")
        try:
            # The catalog is shared, not copied, run for run; what comes out belongs to the request, and is.
            outputs = compiled.infer_request.infer(feeds, share_inputs=True, share_outputs=True)
        except (RuntimeError, TypeError) as error:
            raise RunnerError(f"the graph failed on a batch of {len(batch.history_lengths_B)}: {error}") from error
        names = self._manifest.graphs[batch.purpose].outputs
        return decoded({name: np.array(outputs[name]) for name in names})

    def _opened(self, purpose: Purpose) -> _Compiled:
        graph = self._folder / graph_spec(self._manifest, purpose).file
        try:
            compiled = compile_graph(graph, self._precision, self._num_threads)
        except RuntimeError as error:
            raise RunnerError(f"{graph}: does not load in OpenVINO: {_reason(error)}") from error
        dtypes = {port.any_name: port.get_element_type().to_dtype() for port in compiled.inputs}
        return _Compiled(compiled.create_infer_request(), dtypes)
