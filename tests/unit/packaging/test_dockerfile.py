"""The Dockerfile and .dockerignore by rules: hadolint's, and those of this project."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import dockerfile
import pytest
from dockerfile import IMAGES, ROOT, STAGES, lineage, metadata, pairs_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = [name for name in STAGES if name.endswith("-packages")]


def hadolint(file: Path) -> list[str]:
    """Codes of the rules that the file breaks."""
    command = [Path(sys.executable).with_name("hadolint"), "--no-color", "--format", "json", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return [finding["code"] for finding in json.loads(done.stdout)]


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    assert hadolint(ROOT / "Dockerfile") == []
    bad = tmp_path / "Dockerfile"
    bad.write_text((ROOT / "Dockerfile").read_text().replace("FROM python:3.12.11-slim-bookworm", "FROM python:latest"))
    assert "DL3007" in hadolint(bad)


def test_the_base_is_one_exact_version_of_a_supported_python() -> None:
    (base,) = {stage.base for stage in STAGES.values()} - STAGES.keys()
    tag = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    assert tag is not None
    assert 11 <= int(tag.group(1)) <= 13
    assert pairs_of("cpu", "LABEL")["org.opencontainers.image.base.name"] == f"docker.io/library/{base}"


def test_stages_are_copied_from_that_are_there_and_all_lead_to_an_image() -> None:
    used = set(IMAGES)
    for stage in STAGES.values():
        used.add(stage.base)
        for rest in stage.all("COPY"):
            used |= {word.removeprefix("--from=") for word in rest.split() if word.startswith("--from=")}
    (base,) = {stage.base for stage in STAGES.values()} - STAGES.keys()
    assert used - {base} == set(STAGES)
    assert not any(stage.all("ADD") for stage in STAGES.values())


def test_a_plain_build_makes_the_cpu_image() -> None:
    assert list(STAGES)[-1] == "cpu"


@pytest.mark.parametrize("image", IMAGES)
def test_no_image_runs_as_root_or_through_a_shell(image: str) -> None:
    assert metadata(image, "USER") == "10001:10001"
    steps = [step for stage in lineage(image) for step in stage.instructions]
    # By number and not by name: Kubernetes' runAsNonRoot can tell.
    assert any("useradd --uid 10001 --gid 10001" in rest for keyword, rest in steps if keyword == "RUN")
    after_user = steps[[keyword for keyword, _ in steps].index("USER") :]
    assert not any(keyword == "RUN" for keyword, _ in after_user), "made as another user than it is run by"
    assert isinstance(json.loads(metadata(image, "ENTRYPOINT")), list)
    assert isinstance(json.loads(metadata(image, "CMD")), list)
    assert metadata(image, "WORKDIR") == "/"


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_labelled(image: str) -> None:
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in pairs_of(image, "LABEL").items()}
    assert labels["version"] == PROJECT["version"]
    assert labels["licenses"] == PROJECT["license"]
    assert labels["description"] == PROJECT["description"]
    assert (labels["title"], labels["revision"]) == ("OneSlate", "$REVISION")
    assert "REVISION=" in STAGES["runtime"].all("ARG")


@pytest.mark.parametrize("image", ["cpu", "gpu"])
def test_images_that_serve_have_a_health_check_and_no_build_tools(image: str) -> None:
    assert "readyz" in metadata(image, "HEALTHCHECK")
    stages = lineage(image)
    assert not any("pip" in rest for stage in stages for rest in stage.all("RUN"))
    assert not any("train" in rest for stage in stages for _, rest in stage.instructions)


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_pinned_and_stand_below_our_own_code(name: str) -> None:
    steps = [step for step in STAGES[name].instructions if step[0] != "ARG"]
    assert [keyword for keyword, _ in steps] == ["RUN", "COPY", "RUN"]
    (_, packages), copied, (_, own) = steps
    assert copied == ("COPY", "--from=wheel /wheels /wheels")
    words = shlex.split(packages)
    files = [after for word, after in pairwise(words) if word == "-c"]
    assert files == ["constraints.txt", "constraints-gpu.txt"][: 1 + (name == "gpu-packages")]
    extras = [after for word, after in pairwise(words) if word == "-r"]
    assert (
        extras
        == {
            "cpu-packages": ["cpu.txt"],
            "gpu-packages": ["gpu.txt"],
            "trainer-packages": ["cpu.txt", "train.txt"],
            "loadtest-packages": ["load.txt"],
        }[name]
    )
    # Whatever the wheel needs is there by then, in the versions that it allows.
    assert own == "/opt/oneslate/bin/pip install --no-deps --no-index /wheels/*.whl && /opt/oneslate/bin/pip check"


def test_the_gpu_image_differs_from_the_cpu_image_by_its_packages_only() -> None:
    def steps(name: str) -> list[tuple[str, str]]:
        return [
            (keyword, rest.replace(" -c constraints-gpu.txt", ""))
            for keyword, rest in STAGES[name].instructions
            if keyword != "ENV"
        ]

    packages = [(keyword, rest.replace("gpu.txt", "cpu.txt")) for keyword, rest in steps("gpu-packages")]
    assert packages == steps("cpu-packages")
    assert [(keyword, rest.replace("gpu-packages", "cpu-packages")) for keyword, rest in steps("gpu")] == steps("cpu")
    assert STAGES["gpu"].base == STAGES["cpu"].base == "serving"


def test_the_context_is_small_and_holds_what_the_wheel_is_built_from_alone(tmp_path: Path) -> None:
    dockerfile.copy_context(tmp_path / "context")
    files = [path for path in (tmp_path / "context").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    roots = {path.relative_to(tmp_path / "context").parts[0] for path in files}
    assert roots == dockerfile.PACKAGES | {
        "LICENSE", "README.md", "constraints-gpu.txt", "constraints.txt", "oneslate.py", "pyproject.toml",
    }  # fmt: skip
    # No key, no data, no environment: what may be in these folders besides sources stays out.
    assert {path.suffix for path in files if len(path.relative_to(tmp_path / "context").parts) > 1} == {
        ".css", ".html", ".js", ".py", ".toml", ".typed",
    }  # fmt: skip


def test_whatever_the_images_import_of_ours_is_in_them(tmp_path: Path) -> None:
    dockerfile.copy_context(tmp_path / "context")
    ours = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    imported: set[str] = set()
    for path in (tmp_path / "context").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
    needed = {name.partition(".")[0] for name in imported} & ours
    assert {"oneslate_client", "service"} <= needed
    assert {name for name in needed if not list((tmp_path / "context").glob(f"{name}*"))} == set()
