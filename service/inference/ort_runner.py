"""Runs the bundle's graphs with ONNX Runtime."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import onnxruntime as ort

from service.bundle import Manifest
from service.bundle.manifest import Precision, Purpose
from service.errors import RunnerError
from service.inference.device import DeviceInputs
from service.inference.feeds import decoded, graph_feeds, graph_spec
from service.inference.runner import Batch, Decoded

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"


class OrtRunner:
    """One ONNX Runtime session for each graph that is loaded.

    Each maps the one weight file into memory; what a session adds is its nodes and, for matrix products, packed copies.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        *,
        provider: str = CPU_PROVIDER,
        num_threads: int = 0,
        keeps_catalog: bool | None = None,
    ) -> None:
        """Loads the generator's graph.

        Args:
            manifest: Of the bundle.
            folder: Where its files lie.
            provider: The execution provider; never silently another one.
            num_threads: Of one run; 0: one per core.
            keeps_catalog: Whether the catalog's arrays stay on the provider's device between runs; None: where it is
                another than the host's.

        Raises:
            RunnerError: the graph does not load, or the provider is not there.
        """
        self._manifest = manifest
        self._provider = provider
        self._folder = folder
        self._num_threads = num_threads
        self._keeps_catalog = provider != CPU_PROVIDER if keeps_catalog is None else keeps_catalog
        self._run_of: dict[Purpose, Callable[[Sequence[str], Mapping[str, Any]], Sequence[Any]]] = {}
        """By graph, once it is loaded."""
        self._loading = Lock()
        if provider == CUDA_PROVIDER:
            ort.preload_dlls()
        if provider not in ort.get_available_providers():
            found = ", ".join(ort.get_available_providers())
            hint = "; pip install 'oneslate[gpu]' in place of [cpu]" if provider == CUDA_PROVIDER else ""
            raise RunnerError(f"{provider} is not in this onnxruntime, which has {found}{hint}")
        self.load("generator")

    @property
    def manifest(self) -> Manifest:
        """Of the bundle that the runner serves."""
        return self._manifest

    @property
    def provider(self) -> str:
        """The execution provider."""
        return self._provider

    @property
    def precision(self) -> Precision:
        """That of the graph's file."""
        return self._manifest.graphs["generator"].precision

    def load(self, purpose: Purpose) -> None:
        """Makes a graph ready to run; see `Runner.load`."""
        with self._loading:
            if purpose not in self._run_of:
                ort_session = self._opened(purpose)
                on_device = DeviceInputs(ort_session, "cuda" if self._provider == CUDA_PROVIDER else "cpu")
                self._run_of[purpose] = on_device.run if self._keeps_catalog else ort_session.run

    def run(self, batch: Batch) -> Decoded:
        """Decodes one batch; see `Runner.run`."""
        self.load(batch.purpose)
        feeds = graph_feeds(self._manifest, batch)
        names = self._manifest.graphs[batch.purpose].outputs
        try:
            outputs = self._run_of[batch.purpose](names, feeds)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise RunnerError(f"the graph failed on a batch of {len(batch.history_lengths_B)}: {error}") from error
        return decoded(dict(zip(names, outputs, strict=True)))

    def _opened(self, purpose: Purpose) -> ort.InferenceSession:
        graph = self._folder / graph_spec(self._manifest, purpose).file
        options = session_options(self._provider, self._num_threads)
        try:
            ort_session = ort.InferenceSession(str(graph), options, providers=_with_fallback(self._provider))
        except Exception as error:  # as above
            raise RunnerError(f"{graph}: does not load: {error}") from error
        if self._provider not in ort_session.get_providers():
            # onnxruntime logs a line and goes on without the GPU; a service that was asked for one must not.
            raise RunnerError(
                f"{self._provider} was asked for, but onnxruntime fell back to {ort_session.get_providers()}"
            )
        return ort_session


def session_options(provider: str, num_threads: int) -> ort.SessionOptions:
    """How the runner loads a graph; `num_threads` as it takes them."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    # To plan which buffers may share memory takes the square of the number of nodes: ten seconds of loading for six
    # thousand of them, one without the plan, which saves the CPU neither time nor much memory per run.
    options.enable_mem_reuse = provider != CPU_PROVIDER
    # Else idle threads spin on after a run, on cores that the bundle's other graphs, Redis and HTTP need: two graphs in
    # turn took 78 ms a run, 48 without; one alone takes the same.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _with_fallback(provider: str) -> Sequence[str]:
    return [provider] if provider == CPU_PROVIDER else [provider, CPU_PROVIDER]
