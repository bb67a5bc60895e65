"""What makes the benches quick enough to be tested."""

import io
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console

from loadtests.bench.decode import timing


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
