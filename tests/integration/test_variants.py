"""What may run a bundle: measured at export, chosen at start."""

import builtins
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_graphs import BFLOAT16_TOLERANCE, Exported, as_batch, eager
from live_http import fake_settings, live_client
from search_problems import Problem, random_problem
from test_graph_golden import bundle_path, rewritten  # noqa: F401

from model_export.onnx.config import ExportConfig
from model_export.onnx.variants import MeasuredVariant, measure_variants
from service.bundle import Bundle
from service.catalog import CatalogSnapshot
from service.errors import BundleError, RunnerError
from service.inference import openvino_runner
from service.inference.openvino_runner import OpenVinoRunner, has_bfloat16
from service.inference.runner import Batch, Decoded, Runner
from service.opening import _load_graph
from service.settings import Settings

HERE = [("onnxruntime", "float32"), ("openvino", "float32")]
HERE += [("openvino", "bfloat16")] if has_bfloat16() else []


def requests_of(exported: Exported) -> Problem:
    rng = np.random.default_rng(0)
    while True:
        problem = random_problem(rng, exported.codebook_sizes, 12, most_items=60)
        if problem.catalog.num_items > 20 and problem.allowed_FN.all(1).all():
            return problem


def measure(exported: Exported, said: list[str], **tolerances: float) -> list[MeasuredVariant]:
    problem = requests_of(exported)
    config = ExportConfig(**{"bfloat16_tolerance": BFLOAT16_TOLERANCE, **tolerances})
    batch, slates = as_batch(problem, 5), eager(exported, problem, 5)
    return measure_variants(config, exported.runner.manifest, exported.folder, batch, slates, said.append)


def names(variants: list[MeasuredVariant]) -> list[tuple[str, str]]:
    return [(variant.engine, variant.precision) for variant in variants]


def test_every_engine_that_stays_near_the_model_is_a_variant(dense: Exported) -> None:
    said: list[str] = []
    variants = measure(dense, said)
    assert names(variants) == HERE
    assert len(said) == 3 - len(HERE)
    for variant in variants:
        assert variant.parity.holds
        record = variant.record()
        assert record.identical_share == variant.parity.num_identical / 12
        assert record.ms > 0
        assert (record.max_logprob_difference > 1e-4) == (variant.precision == "bfloat16")
    assert variants[0].record().identical_share == 1


def test_a_mixture_of_experts_runs_in_every_engine(mixture: Exported) -> None:
    assert names(measure(mixture, [])) == HERE


def test_what_cannot_run_or_strays_is_left_out_and_named(dense: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assert names(measure(dense, said, bfloat16_tolerance=1e-9)) == HERE[:2]
    assert "OpenVINO in bfloat16 is left out" in said[0]
    said.clear()

    def refuse(*_: object) -> None:
        raise RuntimeError("OpenVINO does not support the following ONNX operations: other.Thing")

    monkeypatch.setattr(openvino_runner, "compile_graph", refuse)
    assert names(measure(dense, said)) == HERE[:1]
    assert len(said) == 2
    assert "OpenVINO in float32 is left out" in said[0]
    assert "other.Thing" in said[0]


def test_a_precision_that_changes_every_slate_is_left_out(dense: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """However wide its tolerance is, and with no best slate that leads by ten times that."""
    run = OpenVinoRunner.run

    def reversed_beams(self: OpenVinoRunner, batch: Batch) -> Decoded:
        decoded = run(self, batch)
        return replace(decoded, item_rows_BWK=decoded.item_rows_BWK[:, ::-1])

    monkeypatch.setattr(OpenVinoRunner, "run", reversed_beams)
    said: list[str] = []
    assert names(measure(dense, said, bfloat16_tolerance=1e9)) == HERE[:1]
    assert all("strays too far from the model" in line for line in said[: len(HERE) - 1])
    assert len(said) == 2


def test_an_engine_that_fails_when_it_runs_is_left_out(dense: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: OpenVinoRunner, batch: Batch) -> Decoded:
        raise RunnerError("no such kernel")

    monkeypatch.setattr(OpenVinoRunner, "run", broken)
    said: list[str] = []
    assert names(measure(dense, said)) == HERE[:1]
    assert "OpenVINO in float32 is left out: no such kernel" in said[0]


def test_without_openvino_there_is_one_variant(dense: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "service.inference.openvino_runner")
    said: list[str] = []
    assert names(measure(dense, said)) == HERE[:1]
    assert said == ["  OpenVINO is left out: hidden"]


def hide(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """As if what it needs were not installed."""
    imported = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == module:
            raise ImportError("hidden")
        return imported(name, *rest, **more)

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)


def with_variants(bundle: Path, target: Path, *engines: tuple[str, str], **fields: Any) -> Bundle:
    variants = [
        {"engine": engine, "precision": precision, "max_logprob_difference": 0.0, "identical_share": 1.0,
         "batch_size": 8, "ms": 1.0 + place}
        for place, (engine, precision) in enumerate(engines)
    ]  # fmt: skip
    cases = (bundle / "golden.json").read_text()
    write = lambda file: file.write_text(cases)  # noqa: E731
    return Bundle.open(rewritten(bundle, target, "golden.json", write, **{"variants": variants, **fields}))


def load(bundle: Bundle, **values: Any) -> Runner:
    bundled = bundle.catalog()
    snapshot = CatalogSnapshot.build(bundled.items, bundled.sids_NL, bundled.num_events_N)
    return _load_graph(settings(bundle.path, **values), bundle, snapshot)


def settings(path: Path, **values: Any) -> Settings:
    return Settings(bundle=path, intra_op_threads=1, **values)


def test_the_service_takes_what_was_fastest(bundle_path: Path, tmp_path: Path) -> None:  # noqa: F811
    bundle = with_variants(bundle_path, tmp_path / "b", ("openvino", HERE[-1][1]), ("onnxruntime", "float32"))
    runner = load(bundle, runner="auto")
    assert (runner.provider, runner.precision) == ("OpenVINO", HERE[-1][1])
    assert load(bundle).provider == "CPUExecutionProvider"
    named = load(bundle, runner="openvino")
    assert (named.provider, named.precision) == ("OpenVINO", "float32")
    assert load(with_variants(bundle_path, tmp_path / "none"), runner="auto").provider == "CPUExecutionProvider"


def test_a_service_of_the_fastest_variant_says_so_and_serves_slates(bundle_path: Path, tmp_path: Path) -> None:  # noqa: F811
    engine, precision = HERE[-1]
    bundle = with_variants(bundle_path, tmp_path / "b", (engine, precision))
    answers = {}
    for runner in ("auto", "onnx"):
        with live_client(fake_settings(runner=runner, bundle=bundle.path, intra_op_threads=1)) as client:
            answers[runner] = client.get("/version").json()
            slate = client.post("/v1/recommend", json={"user_id": "someone", "slate_size": 1}).json()
            assert slate["source"] == "model"
            assert len(slate["items"]) == 1
    assert (answers["auto"]["provider"], answers["auto"]["precision"]) == ("OpenVINO", precision)
    assert (answers["onnx"]["provider"], answers["onnx"]["precision"]) == ("CPUExecutionProvider", "float32")


@pytest.mark.parametrize(
    ("hidden", "extra", "engines"),
    [
        ("service.inference.openvino_runner", "openvino", (("openvino", "float32"), ("onnxruntime", "float32"))),
        ("service.inference.ort_runner", "cpu", (("onnxruntime", "float32"), ("openvino", "float32"))),
    ],
)
def test_an_engine_that_is_not_installed_is_passed_over(
    bundle_path: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hidden: str,
    extra: str,
    engines: tuple[tuple[str, str], ...],
) -> None:
    bundle = with_variants(bundle_path, tmp_path / "b", *engines)
    hide(monkeypatch, hidden)
    with caplog.at_level(logging.WARNING):
        runner = load(bundle, runner="auto")
    assert runner.provider == {"openvino": "OpenVINO", "onnxruntime": "CPUExecutionProvider"}[engines[1][0]]
    assert f"{engines[0][0]} in float32 is passed over" in caplog.text
    assert f"pip install 'oneslate[{extra}]'" in caplog.text
    with pytest.raises(RunnerError, match="needs its extra"):
        load(with_variants(bundle_path, tmp_path / "alone", engines[0]), runner="auto")


def test_an_engine_that_fails_the_golden_cases_is_passed_over(
    bundle_path: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = OpenVinoRunner.run

    def shifted(self: OpenVinoRunner, batch: Batch) -> Decoded:
        decoded = run(self, batch)
        return replace(decoded, level_logprobs_BWKL=decoded.level_logprobs_BWKL - 1)

    monkeypatch.setattr(OpenVinoRunner, "run", shifted)
    bundle = with_variants(bundle_path, tmp_path / "b", ("openvino", "float32"), ("onnxruntime", "float32"))
    with caplog.at_level(logging.WARNING):
        assert load(bundle, runner="auto").provider == "CPUExecutionProvider"
    assert "openvino in float32 is passed over" in caplog.text
    with pytest.raises(BundleError, match="logprobs differ by 1"):
        load(bundle, runner="openvino")


def test_another_precision_than_the_graphs_is_refused(bundle_path: Path, tmp_path: Path) -> None:  # noqa: F811
    bundle = with_variants(bundle_path, tmp_path / "b", ("onnxruntime", "bfloat16"))
    with pytest.raises(RunnerError, match="ONNX Runtime runs it in float32, not in bfloat16"):
        load(bundle, runner="auto")


def test_variants_come_fastest_first(bundle_path: Path, tmp_path: Path) -> None:  # noqa: F811
    one = {"engine": "onnxruntime", "precision": "float32", "max_logprob_difference": 0.0, "identical_share": 1.0,
           "batch_size": 8}  # fmt: skip
    with pytest.raises((BundleError, ValueError), match="fastest first"):
        with_variants(bundle_path, tmp_path / "b", variants=[one | {"ms": 2.0}, one | {"ms": 1.0}])


def test_a_variant_without_a_tolerance_is_no_manifest(bundle_path: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises((BundleError, ValueError), match="golden_tolerance lacks 'int8'"):
        with_variants(bundle_path, tmp_path / "b", ("openvino", "int8"))


def test_a_precision_needs_its_engine(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ONESLATE_PRECISION=bfloat16 needs ONESLATE_RUNNER=openvino"):
        settings(tmp_path, precision="bfloat16")
    assert settings(tmp_path, runner="openvino", precision="bfloat16").precision == "bfloat16"
