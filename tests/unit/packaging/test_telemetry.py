"""Nothing that we import tells anybody that it is used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("module", ["service.inference.ort_runner", "loadtests.bench.decode.memory_job"])
def test_onnx_runtime_is_told_before_it_is_imported_to_send_nothing(module: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    code = f"import {module}, os, sys; assert 'onnxruntime' in sys.modules; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == "1\n"
    # Where it may send, it writes down who it is: under ~/.cache.
    assert list(tmp_path.iterdir()) == []
    allowed = environment | {"ORT_DISABLE_TELEMETRY": "0"}
    kept = subprocess.run([sys.executable, "-c", code], env=allowed, capture_output=True, text=True, check=True)
    assert kept.stdout == "0\n", "whoever wants it decides"
