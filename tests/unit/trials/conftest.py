"""A simulated log for trials."""

from pathlib import Path

import pytest

from model_export.data.simulator import SimulatorConfig, write_simulation


@pytest.fixture(scope="session")
def tiny_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = SimulatorConfig(num_items=60, num_users=150, num_days=10, mean_visits=4.0)
    return write_simulation(config, tmp_path_factory.mktemp("log"))
