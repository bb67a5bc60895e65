"""A simulated log for trials, which fit on one thread, as they do in processes of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model_export.data.simulator import SimulatorConfig, write_simulation


@pytest.fixture(scope="session")
def tiny_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = SimulatorConfig(num_items=60, num_users=150, num_days=10, mean_visits=4.0)
    return write_simulation(config, tmp_path_factory.mktemp("log"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """With more, sums come out in any order on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
