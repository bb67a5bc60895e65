"""What makes the benches quick enough to be tested."""

import io
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from rich.console import Console
from untraced import untraced

from loadtests.bench.decode import constraint, graphs, timing
from model_export.onnx.kept import KeptPieces
from model_export.onnx.pieces import export_pieces


@pytest.fixture(autouse=True)
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benches trace all they export, since they say how long that takes; nobody reads that here."""
    kept = KeptPieces.of_user()
    for module in (graphs, constraint):
        monkeypatch.setattr(module, "export_pieces", untraced()(partial(export_pieces, kept=kept)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short readings."""
    monkeypatch.setattr(timing, "SGEMM_SIZES", (64, 96))
    monkeypatch.setattr(timing, "WINDOW_S", 0.0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def console() -> Console:
    """Wide, and read by nobody."""
    return Console(file=io.StringIO(), width=200)
