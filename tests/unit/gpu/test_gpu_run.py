"""The GPU script without a GPU: its refusal, its files, and on the CPU its whole way with a tiny model."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from rich.console import Console

from loadtests.bench.decode.flops import useful_flops
from loadtests.bench.decode.workload import DecodeWorkload
from loadtests.bench.result import ROOT, read_results
from loadtests.gpu import checks, run
from loadtests.gpu.checks import CHECKS, Bench, Settings
from service.inference.ort_runner import CPU_PROVIDER, CUDA_PROVIDER, OrtRunner
from service.inference.runner import Batch, Decoded

HAS_CUDA = CUDA_PROVIDER in ort.get_available_providers()


def tiny(**changes: Any) -> Settings:
    """Seconds on a CPU."""
    values: dict[str, Any] = {
        "name": "tiny", "num_threads": 1, "num_rounds": 1, "num_items": 40, "codebook_size": 8, "num_levels": 2,
        "slate_size": 2, "history_length": 6, "shapes": [], "num_excluded": 3, "seed": 0,
        "model": {
            "width": 16, "num_heads": 2, "head_width": 8, "encoder_layers": 1, "decoder_layers": 1,
            "feed_forward_width": 32, "num_experts": 1, "num_active_experts": 1,
        },
    }  # fmt: skip
    settings: dict[str, Any] = {
        "minutes": 5.0, "tolerance": 1e-4, "num_problems": 6, "min_identical": 0.8, "peak_size": 32, "num_readings": 3,
        "latency_shapes": ((4, 1, 6), (4, 3, 5)), "peak_shape": (4, 3, 6),
        "small": DecodeWorkload.of(values), "large": DecodeWorkload.of({**values, "name": "large", "num_excluded": 0}),
    }  # fmt: skip
    return Settings(**{**settings, **changes})


@pytest.fixture
def console() -> Console:
    """On standard output."""
    return Console(width=200)


def read(out: Path) -> dict[str, dict[str, Any]]:
    """The checks of `checks.json`, by name."""
    report = json.loads((out / "checks.json").read_text())
    passed = [check["passed"] for check in report["checks"]]
    assert report["passed"] == (len(passed) == len(CHECKS) and all(passed))
    for check in report["checks"]:
        assert check.keys() == {"name", "passed", "took_s", "error", "rows"}
        assert check["passed"] == (check["error"] == "")
    return {check["name"]: check for check in report["checks"]}


def test_the_committed_settings_are_the_problem_that_is_asked_for() -> None:
    settings = Settings.load(run.SETTINGS)
    model, large = settings.large.model, settings.large
    assert (model.encoder_layers, model.decoder_layers, model.width) == (8, 8, 1024)
    assert (large.num_levels, large.codebook_size) == (4, 256)
    assert settings.latency_shapes == ((200, 1, 256), (200, 16, 2048))
    assert settings.minutes < 10
    assert all(length <= large.history_length for *_, length in (*settings.latency_shapes, settings.peak_shape))


@pytest.mark.skipif(HAS_CUDA, reason="there is a GPU")
def test_without_the_provider_it_refuses_and_says_so_and_builds_nothing(tmp_path: Path) -> None:
    started_s = time.monotonic()
    command = [sys.executable, "-m", "loadtests.gpu.run", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    found = read(tmp_path / "out")
    assert list(found) == list(CHECKS)
    assert f"{CUDA_PROVIDER} is not in this onnxruntime: " in found["provider"]["error"]
    assert f"{CUDA_PROVIDER} is not in this onnxruntime: " in " ".join(done.stdout.split())
    for name in ("parity", "latency", "share_of_peak"):
        assert found[name]["error"] == f"refused: {CUDA_PROVIDER} is not active"
    if not torch.cuda.is_available():
        assert found["peak"]["error"] == found["eager_latency"]["error"] == "BenchError: PyTorch sees no GPU"
        assert not (tmp_path / "out" / "gpu.jsonl").exists()
    assert time.monotonic() - started_s < 100  # the large model alone takes minutes here


@pytest.mark.slow
def test_on_the_cpu_a_tiny_model_goes_the_whole_way(tmp_path: Path, console: Console) -> None:
    settings = tiny()
    assert run.run(tmp_path, settings=settings, provider=CPU_PROVIDER, console=console)
    found = read(tmp_path)
    assert list(found) == list(CHECKS)
    value = {
        (row["workload"], row["system"], row["unit"]): row["value"] for check in found.values() for row in check["rows"]
    }
    assert value["small graph", CPU_PROVIDER, "nodes"] > 100
    assert value["parity with the CPU", "onnxruntime float32", "of best slates the same"] == 1
    assert value["parity with the CPU", "onnxruntime float32", "largest difference of logprobs"] <= 1e-6
    rates = {name: value["product of 32", name, "TFLOP/s"] for name in ("float32", "TF32", "bfloat16")}
    assert all(rate > 0 for rate in rates.values())
    for beam_width, batch_size, length in (*settings.latency_shapes, settings.peak_shape):
        label = f"large, beam {beam_width}, batch {batch_size}, history {length}"
        flops = useful_flops(
            settings.large.model, settings.large.spec,
            batch_size=batch_size, beam_width=beam_width, history_length=length,
        )  # fmt: skip
        rate = value[label, "onnxruntime float32", "useful TFLOP/s"]
        assert rate == pytest.approx(flops / value[label, "onnxruntime float32", "ms p50"] / 1e9)
        if (beam_width, batch_size, length) != settings.peak_shape:
            assert value[label, "eager PyTorch float32", "ms p50"] > 0
    label = "large, beam 4, batch 3, history 6"
    share = value[label, "onnxruntime float32", "of the float32 peak"]
    assert share == pytest.approx(value[label, "onnxruntime float32", "useful TFLOP/s"] / rates["float32"])
    (result,) = read_results(tmp_path / "gpu.jsonl")  # as `oneslate results` reads it
    assert len(result.rows) == len(value)
    assert "failed" not in result.caveat


class Wrong(OrtRunner):
    """A runner whose logprobs are off."""

    def run(self, batch: Batch) -> Decoded:
        """As decoded, but for a hundredth."""
        out = super().run(batch)
        return Decoded(
            item_rows_BWK=out.item_rows_BWK,
            item_valid_BWK=out.item_valid_BWK,
            level_logprobs_BWKL=out.level_logprobs_BWKL + np.float32(0.01),
            scores_BW=out.scores_BW,
        )


@pytest.mark.slow
def test_a_failed_check_is_recorded_and_stops_no_other(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Bench, "runners", lambda bench, problem: {"off": Wrong(problem.manifest, problem.graph.path.parent)}
    )
    monkeypatch.setitem(CHECKS, "peak", lambda bench: 1 / 0)  # type: ignore[arg-type,return-value]
    assert not run.run(tmp_path, settings=tiny(), provider=CPU_PROVIDER, console=console)
    found = read(tmp_path)
    assert "off: logprobs differ by 0.01 (0.0001 is allowed)" in found["parity"]["error"]
    assert found["peak"]["error"] == "ZeroDivisionError: division by zero"
    assert found["latency"]["passed"]
    assert found["eager_latency"]["passed"]
    (result,) = read_results(tmp_path / "gpu.jsonl")
    assert "failed: parity, peak" in result.caveat


def test_it_needs_none_of_the_trainers_data_libraries_nor_the_rivals() -> None:
    absent = ["polars", "sklearn", "scipy", "matplotlib", "transformers", "openvino", "redis", "fastapi"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import loadtests.gpu.run"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_slate_with_another_score_is_a_difference() -> None:
    def decoded(row: int, score: float) -> Decoded:
        return Decoded(
            item_rows_BWK=np.array([[[row, 5]]], dtype=np.int32),
            item_valid_BWK=np.ones((1, 1, 2), dtype=bool),
            level_logprobs_BWKL=np.full((1, 1, 2, 2), score / 4, dtype=np.float32),
            scores_BW=np.array([[score]], dtype=np.float32),
        )

    for row, is_same in ((1, True), (2, False)):
        difference, same_B = checks._compare(decoded(1, -4.0), decoded(row, -4.4))
        assert difference == pytest.approx(0.1)
        assert same_B.tolist() == [is_same]


def test_when_time_is_over_the_rest_is_left_out(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(bench: Bench) -> list[Any]:
        while True:
            time.sleep(0.01)

    for name in CHECKS:
        monkeypatch.setitem(CHECKS, name, endless)
    monkeypatch.setattr(run, "NEED_PROVIDER", ())
    started_s = time.monotonic()
    assert not run.run(tmp_path, settings=tiny(minutes=0.01), provider=CPU_PROVIDER, console=console)
    assert time.monotonic() - started_s < 30
    found = read(tmp_path)
    assert list(found) == list(CHECKS)
    assert {check["error"] for check in found.values()} == {"out of time"}
