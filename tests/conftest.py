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


EXPORTED = {"mixture", "dense", "vectors", "dense_vectors", "exported"}
"""Fixtures whose graphs take half a minute each to export."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests one of several processes runs: a file's together, and those of exported graphs, made once, too."""
    of_graphs = {item.path for item in items if EXPORTED & set(getattr(item, "fixturenames", ()))}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("graphs" if item.path in of_graphs else item.path.name))
