"""The pins: complete, exact, what is installed, and from nowhere in particular."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
FILES = {name: (ROOT / name).read_text().splitlines() for name in ("constraints.txt", "constraints-gpu.txt")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def pins(file: str) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in FILES[file] if not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def version_of(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    return specifier.version


def declared(*, gpu: bool = False) -> list[Requirement]:
    lines = PROJECT["dependencies"] + [
        line for extra, lines in EXTRAS.items() if (extra == "gpu") == gpu for line in lines
    ]
    return [Requirement(line) for line in lines]


def installed_closure(roots: list[Requirement]) -> Iterator[tuple[str, str]]:
    """Name and version of everything that the requirements pull in here."""
    todo, done = (
        [requirement for requirement in roots if requirement.marker is None or requirement.marker.evaluate()],
        set(),
    )
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            key = canonicalize_name(requirement.name), extra
            if key in done:
                continue
            done.add(key)
            found = distribution(requirement.name)
            yield key[0], found.version
            needs = (Requirement(line) for line in found.requires or [])
            todo += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]


@pytest.mark.parametrize("file", FILES)
def test_every_line_is_one_exact_version_and_names_no_registry(file: str) -> None:
    for line in FILES[file]:
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==(\d+!)?[A-Za-z0-9.]+( *;.*)?", line), line
    assert len(pins(file)) == sum(not line.startswith("#") for line in FILES[file])


def test_every_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    known = pins("constraints.txt")
    for requirement in declared():
        assert requirement.specifier.contains(version_of(known[canonicalize_name(requirement.name)])), requirement
    known |= pins("constraints-gpu.txt")
    for requirement in declared(gpu=True):
        assert requirement.specifier.contains(version_of(known[canonicalize_name(requirement.name)])), requirement


def test_what_is_installed_here_is_what_is_pinned() -> None:
    known = pins("constraints.txt")
    for name, version in installed_closure(declared()):
        assert name in known, f"{name} {version} is not pinned: make pins"
        # A build without CUDA calls itself 2.13.0+cpu and is the same version.
        assert version_of(known[name]) == version.split("+")[0], name


def test_nothing_is_pinned_that_nothing_needs() -> None:
    needed = {name for name, _ in installed_closure(declared())} | {"setuptools"}
    here = {name for name, pin in pins("constraints.txt").items() if pin.marker is None or pin.marker.evaluate()}
    # What only another Python or system needs is not installed here.
    superfluous = {name for name in here - needed if _is_installed(name)}
    assert superfluous == set()


def test_the_build_tool_is_pinned_too() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for requirement in map(Requirement, requires):
        assert requirement.specifier.contains(version_of(pins("constraints.txt")[canonicalize_name(requirement.name)]))


def test_the_two_files_pin_nothing_twice() -> None:
    assert pins("constraints.txt").keys().isdisjoint(pins("constraints-gpu.txt"))


def test_the_two_onnxruntimes_are_of_one_version_and_never_together() -> None:
    assert version_of(pins("constraints.txt")["onnxruntime"]) == version_of(
        pins("constraints-gpu.txt")["onnxruntime-gpu"]
    )
    base = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert {Requirement(line).name for line in EXTRAS["cpu"]} == {"onnxruntime"}
    assert {Requirement(line).name for line in EXTRAS["gpu"]} == {"onnxruntime-gpu"}
    assert base.isdisjoint({"onnxruntime", "onnxruntime-gpu", "torch"})


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
