"""Who else can run the graph that was exported, how near it stays to the model, and how fast it is here."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from model_export.model.generator import HistoryBatch
from model_export.onnx.config import ExportConfig
from model_export.onnx.parity import Parity, compare
from model_export.search.eager import BeamSearch, Slates
from service.bundle import Manifest, Variant
from service.bundle.manifest import Engine, Precision
from service.errors import RunnerError
from service.inference.ort_runner import OrtRunner
from service.inference.runner import Batch, Draws, Runner

_NUM_ROUNDS = 5
_SAMPLED_IDENTICAL = 0.9
"""Share of first draws that must be the model's: a near tie may fall either way, other noise changes nearly all."""


@dataclass(frozen=True, kw_only=True)
class MeasuredVariant:
    """One engine in one precision."""

    engine: Engine
    precision: Precision
    parity: Parity
    ms: float
    """Median milliseconds of the parity requests as one batch, in turn with the other variants."""

    def __str__(self) -> str:
        """A line for people."""
        parity = self.parity
        return (
            f"{self.engine} in {self.precision}: {self.ms:.0f} ms for {parity.num_requests} requests, "
            f"{parity.num_identical} best slates as the model's, logprobs within {parity.max_logprob_difference:.1g} "
            f"({parity.tolerance:g} allowed)"
        )

    def record(self) -> Variant:
        """For the manifest."""
        return Variant(
            engine=self.engine,
            precision=self.precision,
            max_logprob_difference=self.parity.max_logprob_difference,
            identical_share=self.parity.identical_share,
            batch_size=self.parity.num_requests,
            ms=self.ms,
        )


def measure_variants(
    config: ExportConfig, manifest: Manifest, folder: Path, batch: Batch, slates: Slates, say: Callable[[str], None]
) -> list[MeasuredVariant]:
    """Runs the batch in every engine and precision that is here; ONNX Runtime in float32 comes first, near or not.

    Args:
        config: Gives the tolerances.
        manifest: Of the bundle to be.
        folder: Where its float32 graphs lie.
        batch: What to run.
        slates: What the model makes of it.
        say: Told which variant is left out, and why.
    """
    reference = OrtRunner(manifest, folder)
    found: list[tuple[Engine, Runner, Parity]] = [("onnxruntime", reference, _parity(config, reference, batch, slates))]
    for precision, load in _openvino_runners(manifest, folder, say).items():
        try:
            runner = load()
            parity = _parity(config, runner, batch, slates)
        except RunnerError as error:
            say(f"  OpenVINO in {precision} is left out: {error}")
            continue
        if parity.holds:
            found.append(("openvino", runner, parity))
        else:
            say(f"  OpenVINO in {precision} is left out: it strays too far from the model: {parity}")
    times_ms = _interleaved([runner for _, runner, _ in found], batch)
    return [
        MeasuredVariant(engine=engine, precision=runner.precision, parity=parity, ms=ms)
        for (engine, runner, parity), ms in zip(found, times_ms, strict=True)
    ]


def explained_difference(manifest: Manifest, folder: Path, batch: Batch, slates: Slates) -> float:
    """How far the logprobs that the graph `explain` gives the model's best slates lie from the model's own."""
    forced_BK = np.ascontiguousarray(slates.item_rows_BWK[:, 0].numpy())
    decoded = OrtRunner(manifest, folder).run(replace(batch, purpose="explain", forced_rows_BK=forced_BK))
    expected_BKL = slates.level_logprobs_BWKL[:, 0].numpy()
    return float(np.abs(decoded.level_logprobs_BWKL[:, 0] - expected_BKL).max())


def sampled_parity(
    config: ExportConfig, manifest: Manifest, folder: Path, batch: Batch, search: BeamSearch, history: HistoryBatch
) -> Parity:
    """How near the slates that the graph `sampler` draws, at temperature 1 with a seed each, come to the model's."""
    seeds_B = np.arange(len(batch.history_lengths_B))
    slates = search.decode(
        history,
        beam_width=batch.beam_width,
        excluded_rows_BX=torch.from_numpy(batch.excluded_rows_BX),
        temperature=1.0,
        seeds_B=torch.from_numpy(seeds_B),
    )
    draws = Draws(temperatures_B=np.ones(len(seeds_B), dtype=np.float32), seeds_B=seeds_B)
    decoded = OrtRunner(manifest, folder).run(replace(batch, purpose="sampler", draws=draws))
    return compare(slates, decoded, config.logprob_tolerance, _SAMPLED_IDENTICAL)


def _openvino_runners(
    manifest: Manifest, folder: Path, say: Callable[[str], None]
) -> dict[Precision, Callable[[], Runner]]:
    try:
        from service.inference.openvino_runner import PRECISIONS, OpenVinoRunner  # noqa: PLC0415  (an extra)
    except ImportError as error:
        say(f"  OpenVINO is left out: {error}")
        return {}
    return {precision: partial(OpenVinoRunner, manifest, folder, precision=precision) for precision in PRECISIONS}


def _parity(config: ExportConfig, runner: Runner, batch: Batch, slates: Slates) -> Parity:
    if runner.precision == "bfloat16":
        share = config.bfloat16_min_identical
        return compare(slates, runner.run(batch), config.bfloat16_tolerance, share, config.choice)
    decoded = runner.run(batch)
    return compare(
        slates, decoded, config.logprob_tolerance, choice=config.choice, reward_tolerance=config.reward_tolerance
    )


def _interleaved(runners: list[Runner], batch: Batch) -> list[float]:
    """Median milliseconds of each."""
    times_ms: list[list[float]] = [[] for _ in runners]
    for _ in range(_NUM_ROUNDS):
        for runner, times in zip(runners, times_ms, strict=True):
            started_s = time.perf_counter()
            runner.run(batch)
            times.append((time.perf_counter() - started_s) * 1000)
    return [statistics.median(times) for times in times_ms]
