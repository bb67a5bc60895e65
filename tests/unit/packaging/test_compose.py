"""docker-compose.yml against its schema and against what the containers really contain."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose as compose_file
import pytest
from dockerfile import ROOT, STAGES, lineage, metadata, pairs_of
from typer.main import get_command

from oneslate import cli
from service.settings import CollectSettings, Settings

DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return compose_file.load()


def ours(compose: dict[str, Any]) -> dict[str, Any]:
    """The services whose images are built here."""
    return {name: service for name, service in compose["services"].items() if "build" in service}


def words_of(service: dict[str, Any]) -> list[str]:
    """Entrypoint and command, as the container runs them."""
    target = service["build"]["target"]
    entrypoint: list[str] = service.get("entrypoint") or json.loads(metadata(target, "ENTRYPOINT"))
    return entrypoint + list(service.get("command") or json.loads(metadata(target, "CMD")))


def options_of(service: dict[str, Any]) -> dict[str, Any]:
    """What the command makes of a service's words; wrong usage is an error."""
    program, name, *arguments = words_of(service)
    assert program == "oneslate"
    command = get_command(cli).commands[name]  # type: ignore[attr-defined]
    given: dict[str, Any] = command.make_context(name, arguments).params
    return given


def settings_of(service: dict[str, Any]) -> dict[str, str]:
    image = pairs_of(service["build"]["target"], "ENV")
    found = image | {name: str(value) for name, value in service.get("environment", {}).items()}
    return {name: value for name, value in found.items() if name.startswith("ONESLATE_")}


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
    for name, value in settings_of(compose["services"]["service"]).items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert settings.host == "0.0.0.0"
    assert settings.port == exposed_port()
    assert settings.history.url is not None
    host, port = re.fullmatch(r"redis://([a-z]+):(\d+)/0", settings.history.url.get_secret_value()).groups()  # type: ignore[union-attr]
    assert host in compose["services"]
    assert host in compose["services"]["service"]["depends_on"]
    assert port == "6379"


def test_the_collector_reads_the_same_redis_and_serves_metrics_to_the_network(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, collector = compose["services"]["service"], compose["services"]["collector"]
    for name, value in settings_of(collector).items():
        monkeypatch.setenv(name, value)
    url = CollectSettings.load().history.url
    assert url is not None
    assert url.get_secret_value() == service["environment"]["ONESLATE_HISTORY__URL"]
    assert int(service["environment"]["ONESLATE_EVENT_LOG__MAX_ROWS"]) > 0
    options = options_of(collector)
    assert (options["metrics_host"], options["metrics_port"]) == ("0.0.0.0", 9101)
    assert f"http://127.0.0.1:{options['metrics_port']}/metrics" in collector["healthcheck"]["test"][-1]
    assert collector["volumes"] == [f"log:{options['out']}"]


def test_the_bundle_is_built_where_the_service_reads_it_and_the_service_waits_for_it(compose: dict[str, Any]) -> None:
    services = compose["services"]
    bundle = Path(services["service"]["environment"]["ONESLATE_BUNDLE"])
    assert services["service"]["volumes"] == [f"bundles:{bundle.parent}:ro"]
    assert f"bundles:{bundle.parent}" in services["trainer"]["volumes"]
    assert options_of(services["trainer"])["build_into"] == bundle
    # A folder that is itself a mount cannot be replaced in one rename, as bundles are.
    assert bundle.parent != Path("/")
    assert services["service"]["depends_on"]["trainer"]["condition"] == "service_completed_successfully"
    assert "restart" not in services["trainer"], "it ends, and must not be started again when it has"
    assert options_of(services["trainer"])["must_be_there"] is False
    # Where somebody else's bundle is served, the trainer looks into the same folder, and builds none there.
    mine = compose_file.load(BUNDLES="./mine", BUNDLE="mine")["services"]
    assert mine["trainer"]["volumes"][0] == mine["service"]["volumes"][0].removesuffix(":ro") == "./mine:/bundles"
    assert options_of(mine["trainer"])["build_into"] == Path(mine["service"]["environment"]["ONESLATE_BUNDLE"])
    assert options_of(mine["trainer"])["must_be_there"] is True


def test_histories_are_replayed_from_the_trainers_run_into_the_service(compose: dict[str, Any]) -> None:
    services = compose["services"]
    seed, trainer = services["seed"], services["trainer"]
    assert seed["image"] == trainer["image"]
    assert options_of(seed)["replay_to"] == f"http://service:{exposed_port()}"
    assert seed["depends_on"]["service"]["condition"] == "service_healthy"
    # The command looks for its run in `runs`, below the image's working folder.
    assert metadata("trainer", "WORKDIR") == "/"
    assert "runs:/runs" in trainer["volumes"]
    assert seed["volumes"] == ["runs:/runs:ro"]


def test_locust_knows_its_options_and_where_the_service_is(compose: dict[str, Any]) -> None:
    locust = compose["services"]["locust"]
    program, *arguments = words_of(locust)
    assert program == "locust"
    (copied,) = [rest for rest in STAGES["loadtest"].all("COPY") if not rest.startswith("--from=")]
    source, target = copied.split()
    assert arguments[arguments.index("-f") + 1] == target
    words = [str(ROOT / source) if word == target else word for word in arguments]
    listed = subprocess.run(
        [sys.executable, "-m", "locust", *words, "--list"], check=False, capture_output=True, text=True
    )
    assert (listed.returncode, "Visitor" in listed.stdout) == (0, True), listed.stderr
    assert arguments[arguments.index("--host") + 1] == f"http://service:{exposed_port()}"
    port = metadata("loadtest", "EXPOSE")
    assert locust["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f":{port}/" in locust["healthcheck"]["test"][-1]


def test_our_containers_have_no_rights_and_write_to_volumes_that_are_theirs(compose: dict[str, Any]) -> None:
    created = re.search(r"install -d -o 10001 -g 10001 (.*)", DOCKERFILE)
    assert created is not None
    owned = set(created.group(1).split())
    assert any("install -d" in rest for rest in STAGES["runtime"].all("RUN"))
    for name, service in ours(compose).items():
        assert STAGES["runtime"] in lineage(service["build"]["target"])
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["tmpfs"] == ["/tmp"], name
        assert "user" not in service, name
        assert "privileged" not in service, name
        assert {mount.split(":")[1] for mount in service.get("volumes", [])} <= owned, name


def test_an_image_of_ours_is_built_by_whoever_uses_it(compose: dict[str, Any]) -> None:
    # A service with `image` alone would have compose ask a registry for it.
    builds: dict[str, Any] = {}
    for service in compose["services"].values():
        if "build" in service or service["image"].startswith("oneslate:"):
            assert builds.setdefault(service["image"], service["build"]) == service["build"]
            assert service["image"] == f"oneslate:{service['build']['target']}"
            arguments = {line.partition("=")[0] for stage in STAGES.values() for line in stage.all("ARG")}
            assert set(service["build"].get("args", {})) <= arguments


def test_what_services_wait_for_is_there_and_can_come(compose: dict[str, Any]) -> None:
    services = compose["services"]
    order = compose_file.in_order(services)
    assert sorted(order) == sorted(services)
    assert order.index("trainer") < order.index("service") < order.index("seed")
    for service in services.values():
        for awaited, condition in compose_file.conditions(service).items():
            if condition == "service_healthy":
                has_check = "healthcheck" in services[awaited]
                target = services[awaited].get("build", {}).get("target", "")
                assert has_check or any(stage.all("HEALTHCHECK") for stage in lineage(target))


def test_prometheus_and_grafana_are_asked_where_they_listen(compose: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana", "locust"):
        (port,) = compose["services"][name]["ports"]
        inside = port.rpartition(":")[2]
        assert f"http://127.0.0.1:{inside}/" in compose["services"][name]["healthcheck"]["test"][-1]


def test_redis_keeps_what_was_acknowledged(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    program, read = redis["command"]
    mounts = {target: (source, mode) for source, target, *mode in (one.split(":") for one in redis["volumes"])}
    file, mode = mounts[read]
    assert (program, file, mode) == ("redis-server", "./deploy/redis/redis.conf", ["ro"])
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    options = dict(line.split(maxsplit=1) for line in lines)
    assert (options["appendonly"], options["appendfsync"]) == ("yes", "everysec")
    assert options["maxmemory-policy"] == "noeviction"
    assert mounts[options["dir"]] == ("redis", [])
    assert compose["services"]["service"]["depends_on"]["redis"]["condition"] == "service_healthy"


def test_everything_that_stays_up_has_a_health_check_and_a_pinned_image(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if "build" in service:
            assert service["build"]["target"] in STAGES
            ends = service["image"] == "oneslate:trainer"
            assert ends or "healthcheck" in service or metadata(service["build"]["target"], "HEALTHCHECK")
        else:
            assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-\w+)?", service["image"]), name
            assert service["healthcheck"]["test"][0] == "CMD"


def test_the_service_drains_before_it_is_killed(compose: dict[str, Any]) -> None:
    grace_s = int(compose["services"]["service"]["stop_grace_period"].removesuffix("s"))
    # Twice: connections first, then the batcher.
    assert grace_s > 2 * Settings.model_fields["drain_s"].default


def exposed_port() -> int:
    return int(metadata("cpu", "EXPOSE"))
