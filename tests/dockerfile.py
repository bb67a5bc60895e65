"""The Dockerfile, read: its stages and what they inherit. Where there is no container engine, its steps can be run.

Each stage becomes a folder that stands for its root; absolute paths of the instructions are moved below it. What a
folder cannot stand for (users, the base image's Debian) is read, not run.
"""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_RUN = ("groupadd", "install -d -o")
"""Beginnings of steps that need an own root file system and its users."""


@dataclass
class Stage:
    """One FROM and what follows it."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [rest for name, rest in self.instructions if name == keyword]


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
PACKAGES = frozenset(
    name.removesuffix("*")
    for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
)
"""Folders that the wheel is made of."""
IMAGES = ("cpu", "gpu", "trainer", "loadtest")
"""The stages that are made to be run."""


def lineage(name: str) -> list[Stage]:
    """The stage and all below it, the lowest first."""
    stages: list[Stage] = []
    while name in STAGES:
        stages.insert(0, STAGES[name])
        name = STAGES[name].base
    return stages


def pairs_of(name: str, keyword: str) -> dict[str, str]:
    """ENV or LABEL of the image."""
    lines = (rest for stage in lineage(name) for rest in stage.all(keyword))
    pairs = (pair.partition("=") for line in lines for pair in shlex.split(line))
    return {key: value for key, _, value in pairs}


def metadata(name: str, keyword: str) -> str:
    """The last of an instruction; later ones take the place of earlier ones."""
    found = [rest for stage in lineage(name) for rest in stage.all(keyword)]
    assert found, f"{name} has no {keyword}"
    return found[-1]


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
        if stage.base in STAGES:
            shutil.copytree(self.build(stage.base), root, symlinks=True)
            # A virtual environment knows its path: a copy of it would be the old one.
            assert not list(root.rglob("pyvenv.cfg")), f"{name} cannot stand on its base"
        else:
            root.mkdir(parents=True)
        self._built[name] = root
        inherited = [rest for one in lineage(stage.base) for rest in one.all("WORKDIR")]
        workdir = root / (inherited or ["/"])[-1].lstrip("/")
        for keyword, rest in stage.instructions:
            if keyword == "WORKDIR":
                workdir = root / rest.lstrip("/")
                workdir.mkdir(exist_ok=True)
            elif keyword == "COPY":
                self._copy(rest, root, workdir)
            elif keyword == "RUN" and not rest.startswith(NOT_RUN):
                environment = (
                    os.environ | pairs_of(name, "ENV") | {"PATH": os.environ["PATH"], "HOME": str(self._folder)}
                )
                command = self.moved(rest, root)
                done = subprocess.run(
                    ["sh", "-c", command], cwd=workdir, env=environment, check=False, capture_output=True, text=True
                )
                assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
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
                folder = destination if target.endswith("/") else destination.parent
                folder.mkdir(parents=True, exist_ok=True)
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
    assert len(names) + len(dropped) + 1 == len(lines), "a rule that this does not know"
    destination.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, destination / name, ignore=shutil.ignore_patterns(*dropped))
        else:
            shutil.copy(ROOT / name, destination)
