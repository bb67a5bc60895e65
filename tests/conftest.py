"""Fixtures that every test may use."""

import logging
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from measured import Figures
from rich.console import Console

from loadtests.bench.result import Row, new_result

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
DATA_ROOT = ROOT.parent / "shared" / "data"

# Of this checkout and not of whoever runs the tests: pieces of small models are exported once, and not once in each of
# the many processes.
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".pytest_cache" / "xdg")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos-in-full", action="store_true", help="faults as long and loads as large as in `make chaos`"
    )
    parser.addoption("--screenshots", help="folder for what tests/browser saw")
    parser.addoption("--queries-table", help="file for the queries that tests/monitoring asks, with what came back")
    parser.addoption("--rewrite-docs", help="folder to build in, in full; the pages' JSON answers are written anew")
    parser.addoption("--record", action="store_true", help="append what was measured in full to results/")


@pytest.fixture(scope="session")
def in_full(request: pytest.FixtureRequest) -> bool:
    """Whether faults last and loads count as `make chaos` has them; short where all tests run."""
    return bool(request.config.getoption("--chaos-in-full"))


@pytest.fixture(scope="session")
def scaled(in_full: bool) -> Callable[[T, T], T]:
    """`scaled(short, full)`."""

    def pick(short: T, full: T) -> T:
        return full if in_full else short

    return pick


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest, in_full: bool) -> Iterator[Figures]:
    """Takes what is measured; prints it, and with `--record` keeps it, where it was measured in full."""
    rows: list[Row] = []
    yield lambda workload, system, value, unit: rows.append(
        Row(workload=workload, system=system, value=float(value), unit=unit)
    )
    if rows and in_full:
        result = new_result(
            "chaos",
            rows,
            command=shlex.join(["pytest", *request.config.invocation_params.args]),
            caveat="the tests' clients and Redis share the service's two cores",
        )
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            result.print_to(Console())
        if request.config.getoption("--record"):
            result.append_to()


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A service that runs inside of a test sends all logs to the test's stderr, which is closed after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


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


SHARED = {
    "graphs": {"mixture", "dense", "vectors", "dense_vectors", "exported"},
    "build": {"built", "reader"},
}
"""Fixtures that take from half a minute to two to make, and the group of those tests that use them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests one of several processes runs: a file's together, and those of what is costly to make, made once."""
    groups = {item.path: item.path.name for item in items}
    for item in items:
        for group, fixtures in SHARED.items():
            if fixtures & set(getattr(item, "fixturenames", ())):
                groups[item.path] = group
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[item.path]))
