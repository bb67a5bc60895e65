"""The Makefile: what it runs for which variables, and what it says when it cannot."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

import oneslate

ROOT = Path(__file__).resolve().parents[3]
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make` looks at, with nothing installed."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    if path is not None:
        environment["PATH"] = path
    make_program = shutil.which("make")
    assert make_program is not None
    command = [make_program, "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)


def mark_as_installed(folder: Path) -> None:
    (folder / ".venv").mkdir()
    for stamp in ("created", "demo", "all"):
        (folder / ".venv" / f"{stamp}.stamp").touch()


def planned(folder: Path, *arguments: str) -> str:
    done = make(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.replace("\\\n", " ").split())


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ((), ".venv/bin/oneslate demo --port 8000"),
        (("ONCE=1",), ".venv/bin/oneslate demo --port 8000 --once"),
        (("ONCE=0", "PORT=9"), ".venv/bin/oneslate demo --port 9"),
        (("DATA=a b", "FORMAT=sessions"), ".venv/bin/oneslate demo --port 8000 --data 'a b' --format 'sessions'"),
        (("DATA=x",), ".venv/bin/oneslate demo --port 8000 --data 'x' --format 'movielens'"),
    ],
)
def test_demo_passes_its_variables_on(checkout: Path, arguments: tuple[str, ...], command: str) -> None:
    mark_as_installed(checkout)
    assert planned(checkout, "demo", *arguments) == command


def test_the_demo_installs_no_more_than_it_needs_and_tests_install_everything(checkout: Path) -> None:
    assert "-e '.[cpu,train,embedded]'" in planned(checkout, "demo")
    everything = planned(checkout, "test")
    assert "-e '.[cpu,openvino,train,embedded,load,bench,dev,docs]'" in everything
    assert "-e '.[cpu,train,embedded]'" not in everything


def test_nothing_is_installed_twice_and_a_changed_pin_installs_again(checkout: Path) -> None:
    mark_as_installed(checkout)
    assert "pip" not in planned(checkout, "test")
    newer = (checkout / ".venv" / "all.stamp").stat().st_mtime + 10
    os.utime(checkout / "constraints.txt", (newer, newer))
    assert "pip" in planned(checkout, "test")
    assert "-m venv" not in planned(checkout, "test")


def test_marked_tests_are_deselected(checkout: Path) -> None:
    mark_as_installed(checkout)
    assert "-m 'not gpu and not chromium and not kubectl and not prometheus'" in planned(checkout, "test")
    assert "-m 'gpu'" in planned(checkout, "test", "MARKS=gpu")


def test_a_failed_installation_fails_the_target_and_leaves_no_stamp(checkout: Path) -> None:
    mark_as_installed(checkout)
    (checkout / ".venv" / "all.stamp").unlink()
    (checkout / ".venv" / "bin").mkdir()
    pip = checkout / ".venv" / "bin" / "python"
    pip.write_text("#!/bin/sh\necho 'Installing collected packages: x'\necho 'no space left' >&2\nexit 3\n")
    pip.chmod(0o755)
    done = make(checkout, "test")
    assert done.returncode != 0
    assert "no space left" in done.stderr
    assert not (checkout / ".venv" / "all.stamp").exists()


def test_an_installation_with_nothing_to_show_succeeds(checkout: Path) -> None:
    mark_as_installed(checkout)
    (checkout / ".venv" / "all.stamp").unlink()
    (checkout / ".venv" / "bin").mkdir()
    python = checkout / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\necho 'Requirement already satisfied'\n")
    python.chmod(0o755)
    assert make(checkout, ".venv/all.stamp").returncode == 0
    assert (checkout / ".venv" / "all.stamp").exists()


def test_without_a_python_it_says_what_is_missing(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "touch", "sh"):
        program = shutil.which(name)
        assert program is not None
        (tools / name).symlink_to(program)
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(checkout, "demo", path=str(tools))
    assert done.returncode == 2
    assert "error: no Python 3.11, 3.12 or 3.13 found" in done.stderr
    assert not (checkout / ".venv").exists()


def test_every_target_for_people_is_in_the_help(checkout: Path) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    helped = make(checkout, "help").stdout
    for target in set(phony.group(1).split()) - {"help", "pins"}:
        assert f"make {target} " in helped or f"make {target}:" in helped, target


def test_help_and_readme_name_the_benchmarks_that_run_and_no_other(checkout: Path) -> None:
    mark_as_installed(checkout)
    run = re.findall(r"oneslate bench (\w+)", planned(checkout, "bench"))
    there = get_command(oneslate.bench_cli).commands  # type: ignore[attr-defined]
    told = {
        "help": next(line for line in make(checkout, "help").stdout.splitlines() if line.startswith("make bench ")),
        "README": next(line for line in (ROOT / "README.md").read_text().splitlines() if "`make bench`" in line),
    }
    for place, line in told.items():
        assert [name for name in re.findall(r"bench (\w+)", line) if name in there] == run, place


def test_ci_runs_what_people_run() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "set -euo pipefail" in script
    for target in ("lint", "types", "test"):
        assert re.search(rf"make --no-print-directory {target}\b", script)
    assert "--cov-fail-under=90" in script
