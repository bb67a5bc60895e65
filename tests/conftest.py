"""Fixtures that every test may use."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

DATA_ROOT = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("industrial")`: the folder of a real data set.

    Skips with the set's name where the folder is missing; fails instead when ONESLATE_REQUIRE_DATA=1.
    """

    def folder(name: str) -> Path:
        path = DATA_ROOT / name
        if not path.is_dir():
            message = f"real data set {name!r} is not at {path}"
            if os.environ.get("ONESLATE_REQUIRE_DATA") == "1":
                pytest.fail(message)
            pytest.skip(message)
        return path

    return folder
