"""docker-compose.yml against its schema and against what the containers really contain."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from model_export.recipe import load_recipe
from oneslate import cli
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    # As compose fills variables that are not set: ${NAME:-default}.
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_it_follows_the_compose_schema(tmp_path: Path) -> None:
    def check(file: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    good = check(ROOT / "docker-compose.yml")
    assert good.returncode == 0, good.stdout + good.stderr
    bad = tmp_path / "bad.yml"
    bad.write_text((ROOT / "docker-compose.yml").read_text().replace("restart:", "restrat:"))
    assert check(bad).returncode == 1


def test_every_named_volume_is_declared_and_used(compose: dict[str, Any]) -> None:
    used = set()
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            source, target, *_ = mount.split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{source} is mounted but not in the repository"
            else:
                used.add(source)
    assert used == set(compose["volumes"])


def test_ports_are_on_loopback_only_for_there_are_no_keys(compose: dict[str, Any]) -> None:
    published = {port for service in compose["services"].values() for port in service.get("ports", [])}
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert compose["services"]["service"]["ports"] == [f"127.0.0.1:8000:{exposed_port()}"]


def test_the_settings_of_the_service_are_ones_it_knows(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = image_environment() | compose["services"]["service"]["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    settings = Settings.load()
    assert settings.host == "0.0.0.0"
    assert settings.port == exposed_port()
    assert settings.history.url is not None
    host, port = re.fullmatch(r"redis://([a-z]+):(\d+)/0", settings.history.url.get_secret_value()).groups()  # type: ignore[union-attr]
    assert host in compose["services"]
    assert host in compose["services"]["service"]["depends_on"]
    assert port == "6379"


def test_the_bundle_is_mounted_read_only_where_the_service_looks_and_the_trainer_writes(
    compose: dict[str, Any],
) -> None:
    services = compose["services"]
    bundle = Path(services["service"]["environment"]["ONESLATE_BUNDLE"])
    assert services["service"]["volumes"] == [f"bundles:{bundle.parent}:ro"]
    trainer = services["trainer"]
    assert f"bundles:{bundle.parent}" in trainer["volumes"]
    *_, build = trainer["command"][0].strip().splitlines()
    assert build.endswith(f"--out {bundle}")
    # A folder that is itself a mount cannot be replaced in one rename, as bundles are.
    assert bundle.parent != Path("/")
    owned = re.search(r"install -d -o 10001 -g 10001 (.*)", DOCKERFILE)
    assert owned is not None
    assert {mount.split(":")[1] for mount in trainer["volumes"]} == set(owned.group(1).split())


def test_the_trainer_runs_commands_that_exist(compose: dict[str, Any], tmp_path: Path) -> None:
    trainer = compose["services"]["trainer"]
    assert trainer["entrypoint"] == ["sh", "-ec"]
    script = trainer["command"][0].replace("/runs/", f"{tmp_path}/").replace("/bundles/", f"{tmp_path}/bundles/")
    simulate, build = script.strip().splitlines()
    program, *arguments = shlex.split(simulate)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
    assert any((tmp_path / "simulator").iterdir())
    program, name, *arguments = shlex.split(build)
    assert program == "oneslate"
    command = get_command(cli).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, arguments).params
    assert given["data"] == tmp_path / "simulator"
    assert load_recipe(given["recipe"], [], format=given["fmt"])


def test_redis_keeps_what_was_acknowledged(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    arguments = redis["command"][1:]
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "redis:/data" in redis["volumes"]
    assert compose["services"]["service"]["depends_on"]["redis"]["condition"] == "service_healthy"


def test_everything_that_stays_up_has_a_health_check_and_a_pinned_image(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if "build" in service:
            assert re.search(rf"^FROM \S+ AS {service['build']['target']}$", DOCKERFILE, re.MULTILINE)
        else:
            assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-\w+)?", service["image"]), name
            assert service["healthcheck"]["test"][0] == "CMD"


def test_the_service_drains_before_it_is_killed(compose: dict[str, Any]) -> None:
    grace_s = int(compose["services"]["service"]["stop_grace_period"].removesuffix("s"))
    # Twice: connections first, then the batcher.
    assert grace_s > 2 * Settings.model_fields["drain_s"].default


def exposed_port() -> int:
    found = re.search(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    return int(found.group(1))


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(ONESLATE_\w+)=(\S+)", DOCKERFILE))
