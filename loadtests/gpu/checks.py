"""The checks, each a function from the bench to its rows; what it raises is why it failed.

Legend: B requests, W beams, K slate size, L levels.
"""

import json
import statistics
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from loadtests.bench.decode.flops import useful_flops
from loadtests.bench.decode.timing import System, interleaved, seconds
from loadtests.bench.decode.workload import DecodeWorkload
from loadtests.bench.errors import BenchError
from loadtests.bench.result import Row
from loadtests.gpu.problem import Problem, on_device
from service.inference.feeds import graph_feeds
from service.inference.ort_runner import CPU_PROVIDER, CUDA_PROVIDER, OrtRunner
from service.inference.runner import Decoded, Runner

KEPT, SENT = "onnxruntime float32", "onnxruntime float32, catalog sent with each batch"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`gpu.toml`."""

    minutes: float
    """For everything; what has not begun by then is left out."""
    tolerance: float
    """Largest difference of a code's logprob between the provider and the CPU."""
    num_problems: int
    min_identical: float
    """Share of the best slates that must be the same."""
    peak_size: int
    num_readings: int
    latency_shapes: tuple[tuple[int, int, int], ...]
    """Beam width, batch size, history length."""
    peak_shape: tuple[int, int, int]
    small: DecodeWorkload
    large: DecodeWorkload

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Reads the file; a missing or unknown key is a TypeError."""
        values: dict[str, Any] = tomllib.loads(path.read_text())
        for name in ("small", "large"):
            values[name] = DecodeWorkload.of(values[name])
        values["latency_shapes"] = tuple(tuple(shape) for shape in values["latency_shapes"])
        return cls(**{**values, "peak_shape": tuple(values["peak_shape"])})


class Bench:
    """What the checks share: problems and runners, each made when it is first needed."""

    def __init__(self, settings: Settings, provider: str, folder: Path) -> None:
        self.settings, self.provider, self._folder = settings, provider, folder

    @property
    def device(self) -> torch.device:
        """Where PyTorch computes; `BenchError` where it has no GPU."""
        if self.provider == CPU_PROVIDER:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise BenchError("PyTorch sees no GPU")
        return torch.device("cuda")

    @cached_property
    def small(self) -> Problem:
        """For parity."""
        return Problem(self.settings.small, self._folder / "small")

    @cached_property
    def large(self) -> Problem:
        """For speed."""
        return Problem(self.settings.large, self._folder / "large")

    def runners(self, problem: Problem) -> dict[str, Runner]:
        """What the service offers for this provider, the usual first. float16 and CUDA graphs join here.

        Raises:
            RunnerError: the provider is not there; never silently another one.
        """
        manifest, folder = problem.manifest, problem.graph.path.parent
        return {
            KEPT: OrtRunner(manifest, folder, provider=self.provider, keeps_catalog=True),
            SENT: OrtRunner(manifest, folder, provider=self.provider, keeps_catalog=False),
        }

    @cached_property
    def large_runners(self) -> dict[str, Runner]:
        """Loaded once: it takes gigabytes."""
        return self.runners(self.large)

    @cached_property
    def peak_flops(self) -> dict[str, float]:
        """FLOP/s of a large product in PyTorch, by precision; the best of several."""
        size, found = self.settings.peak_size, {}
        for name, precision, dtype in (
            ("float32", "highest", torch.float32),
            ("TF32", "high", torch.float32),
            ("bfloat16", "highest", torch.bfloat16),
        ):
            torch.set_float32_matmul_precision(precision)
            left, right = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))

            def product(left: torch.Tensor = left, right: torch.Tensor = right) -> None:
                left @ right
                self.synchronize()

            readings = interleaved(self.settings.num_readings, {name: product}, window_s=0)[name]
            found[name] = 2 * size**3 / min(readings)
        torch.set_float32_matmul_precision("highest")
        return found

    def synchronize(self) -> None:
        """Waits until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def provider(bench: Bench) -> list[Row]:
    """The provider is there, and it, not the CPU behind it, runs the graph's nodes."""
    if bench.provider == CUDA_PROVIDER:
        ort.preload_dlls()
    if bench.provider not in ort.get_available_providers():
        raise BenchError(f"{bench.provider} is not in this onnxruntime: {', '.join(ort.get_available_providers())}")
    bench.runners(bench.small)  # refuses where onnxruntime falls back
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        fallback = [] if bench.provider == CPU_PROVIDER else [CPU_PROVIDER]
        ort_session = ort.InferenceSession(str(bench.small.graph.path), options, providers=[bench.provider, *fallback])
        ort_session.run(None, graph_feeds(bench.small.manifest, bench.small.batch(4, 2, 8)))
        events = json.loads(Path(ort_session.end_profiling()).read_text())
    counts = Counter(event["args"]["provider"] for event in events if event["name"].endswith("_kernel_time"))
    if not counts[bench.provider] > counts.total() / 2:
        raise BenchError(f"of {counts.total()} nodes only {counts[bench.provider]} ran on {bench.provider}")
    return [Row(workload="small graph", system=name, value=count, unit="nodes") for name, count in counts.items()]


def parity(bench: Bench) -> list[Row]:
    """Random problems decoded by the provider and by the CPU."""
    problem, settings = bench.small, bench.settings
    reference = OrtRunner(problem.manifest, problem.graph.path.parent)
    rows = []
    for name, runner in bench.runners(problem).items():
        differences, identical = [], []
        for seed in range(settings.num_problems):
            batch = problem.batch(
                8 + 4 * (seed % 3), 1 + seed % 5, 1 + 7 * seed % problem.workload.history_length, seed
            )
            difference, same_B = _compare(reference.run(batch), runner.run(batch))
            differences.append(difference)
            identical.extend(same_B.tolist())
        worst, share = max(differences), float(np.mean(identical))
        rows += [
            Row(workload="parity with the CPU", system=name, value=worst, unit="largest difference of logprobs"),
            Row(workload="parity with the CPU", system=name, value=share, unit="of best slates the same"),
        ]
        if not worst <= settings.tolerance or share < settings.min_identical:
            raise BenchError(
                f"{name}: logprobs differ by {worst:.2g} ({settings.tolerance:g} is allowed), {share:.0%} of the best "
                f"slates are the same ({settings.min_identical:.0%} are asked for)"
            )
    return rows


def _compare(expected: Decoded, found: Decoded) -> tuple[float, Any]:
    """Largest difference of logprobs over the best slates that are the same, and which are [B].

    Where they are not, the scores may not differ by more than all their codes together: a near tie may fall either way.
    """
    same_B = (expected.item_rows_BWK[:, 0] == found.item_rows_BWK[:, 0]).all(1)
    logprob_B = np.abs(expected.level_logprobs_BWKL[:, 0] - found.level_logprobs_BWKL[:, 0]).max((1, 2))
    num_codes = expected.level_logprobs_BWKL[0, 0].size
    score_B = np.abs(expected.scores_BW[:, 0] - found.scores_BW[:, 0]) / num_codes
    return float(np.where(same_B, logprob_B, score_B).max()), same_B


def peak(bench: Bench) -> list[Row]:
    """What the device multiplies at best."""
    label = f"product of {bench.settings.peak_size}"
    return [
        Row(workload=label, system=name, value=rate / 1e12, unit="TFLOP/s") for name, rate in bench.peak_flops.items()
    ]


def latency(bench: Bench) -> list[Row]:
    """Of each runner at each shape."""
    rows = []
    for shape in bench.settings.latency_shapes:
        batch = bench.large.batch(*shape)
        for name, runner in bench.large_runners.items():
            rows += _times(bench, shape, name, lambda runner=runner, batch=batch: runner.run(batch))  # type: ignore[misc]
    return rows


def eager_latency(bench: Bench) -> list[Row]:
    """Of our own search in PyTorch on the same device: what a runner must beat."""
    device = bench.device  # refuses before anything large is built
    search = bench.large.eager(device)
    rows = []
    for beam_width, batch_size, length in bench.settings.latency_shapes:
        history = on_device(bench.large.history(batch_size, length), device)

        def decode(history: Any = history, beam_width: int = beam_width) -> torch.Tensor:
            return search.decode(history, beam_width=beam_width).item_rows_BWK.cpu()

        rows += _times(bench, (beam_width, batch_size, length), "eager PyTorch float32", decode)
    return rows


def share_of_peak(bench: Bench) -> list[Row]:
    """Useful FLOPs of a large batch over the rates that the device reaches in a product."""
    shape = bench.settings.peak_shape
    batch = bench.large.batch(*shape)
    rows = []
    for name, runner in bench.large_runners.items():
        times = _times(bench, shape, name, lambda runner=runner: runner.run(batch))  # type: ignore[misc]
        rate = _flops(bench, shape) / (times[0].value / 1000)
        rows += times
        rows += [
            Row(
                workload=_label(bench, shape),
                system=name,
                value=rate / peak,
                unit=f"of the {precision} peak",
            )
            for precision, peak in bench.peak_flops.items()
        ]
    return rows


def _label(bench: Bench, shape: tuple[int, int, int]) -> str:
    beam_width, batch_size, length = shape
    return f"{bench.large.workload.name}, beam {beam_width}, batch {batch_size}, history {length}"


def _flops(bench: Bench, shape: tuple[int, int, int]) -> int:
    beam_width, batch_size, length = shape
    workload = bench.large.workload
    return useful_flops(
        workload.model, workload.spec, batch_size=batch_size, beam_width=beam_width, history_length=length
    )


def _times(bench: Bench, shape: tuple[int, int, int], system: str, call: System) -> list[Row]:
    """p50, p99 and rate; fewer readings where one takes long."""
    first_s = max(seconds(call, 0.0) for _ in range(2))
    count = max(5, min(bench.settings.num_readings, int(20 / first_s)))
    readings = [seconds(call, 0.0) for _ in range(count)]
    p50_s, label = statistics.median(readings), _label(bench, shape)
    return [
        Row(workload=label, system=system, value=p50_s * 1000, unit="ms p50"),
        Row(workload=label, system=system, value=max(readings) * 1000, unit=f"ms, the longest of {count}"),
        Row(workload=label, system=system, value=_flops(bench, shape) / p50_s / 1e12, unit="useful TFLOP/s"),
    ]


CHECKS: dict[str, Callable[[Bench], list[Row]]] = {
    "provider": provider,
    "parity": parity,
    "peak": peak,
    "latency": latency,
    "share_of_peak": share_of_peak,
    "eager_latency": eager_latency,
}
"""In this order; none needs another's success."""
NEED_PROVIDER = ("parity", "latency", "share_of_peak")
"""Refused without it, before anything large is built."""
