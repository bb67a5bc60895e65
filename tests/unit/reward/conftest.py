"""A reward model of each scope, trained once on data in which a slate's items matter to each other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from feedback_data import config_of, items_of, quiet, visits_with_boredom

from model_export.data.prepared import PreparedData
from model_export.reward.stage import TrainedReward, train_reward

KINDS = {
    "session": {"scope": "session"},
    "causal": {"scope": "session", "causal": True},
    "residual": {"scope": "session", "residual": True},
    "item": {"scope": "item"},
    "position": {"scope": "position"},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def bored() -> PreparedData:
    return visits_with_boredom()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reward")


@pytest.fixture(scope="session")
def trained(bored: PreparedData, folder: Path) -> dict[str, TrainedReward]:
    return {
        name: train_reward(config_of(**kind), bored, items_of(bored.num_items), folder / name, quiet())
        for name, kind in KINDS.items()
    }
