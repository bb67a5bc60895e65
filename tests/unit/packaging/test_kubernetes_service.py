"""deploy/kubernetes against the service: settings, probes, ports, times, secrets, what the autoscaler asks for."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import compose
import pytest
from kustomize import documents
from manifests import KUBERNETES, OVERLAYS, ROOT, configured, everything, find, only_container, pods, ports, rendered
from typer.main import get_command

from oneslate import cli
from service.app import create_app
from service.keys import read_keys
from service.settings import CollectSettings, Settings

SECRETS = {one["metadata"]["name"]: one["stringData"] for one in documents(KUBERNETES / "secrets.example.yaml")}
COMPOSE = compose.load()["services"]


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def environment(overlay: str, name: str) -> dict[str, str]:
    """Of a container: its image's, its ConfigMap's, its Secrets' as in the example."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    (image,) = re.findall(r"^FROM runtime AS serving\nENV (.*)$", dockerfile, re.MULTILINE)
    container = only_container(pods(rendered(overlay))[name])
    given = dict(pair.split("=", 1) for pair in image.split())
    given |= configured(overlay) if "envFrom" in container else {}
    for one in container["env"]:
        reference = one["valueFrom"]["secretKeyRef"]
        given[one["name"]] = SECRETS[reference["name"]][reference["key"]]
    return given


def load(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> Settings:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def mounts(overlay: str, name: str) -> dict[str, dict[str, object]]:
    """Path -> volume, with whether it is read-only."""
    pod = pods(everything(overlay))[name]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    return {
        mount["mountPath"]: volumes[mount["name"]] | {"readOnly": mount.get("readOnly", False)}
        for mount in only_container(pod)["volumeMounts"]
    }


def test_the_settings_are_ones_that_the_service_takes(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, environment(overlay, "oneslate"))
    assert settings.host == "0.0.0.0"
    assert {settings.port} == set(ports(pods(rendered(overlay))["oneslate"]).values())
    assert settings.provider == ("cuda" if overlay == "gpu" else "cpu")
    assert settings.event_log.max_rows > 0, "the collector would have nothing to do"
    assert not settings.allow_anonymous
    requests = only_container(pods(rendered(overlay))["oneslate"])["resources"]["requests"]
    assert requests["cpu"] == str(settings.intra_op_threads)


def test_what_the_settings_name_is_mounted_there_read_only(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, environment(overlay, "oneslate"))
    mounted = mounts(overlay, "oneslate")
    assert settings.keys_file is not None
    assert settings.bundle is not None
    keys = mounted[str(settings.keys_file.parent)]
    # A folder: one file of a Secret (subPath) would never change.
    assert keys["secret"] == {"secretName": "oneslate-keys", "defaultMode": 0o440}
    assert settings.keys_file.name in SECRETS["oneslate-keys"]
    assert settings.models_dir == settings.bundle.parent
    claim = {"claimName": "oneslate-bundles"}
    assert mounted[str(settings.models_dir)]["persistentVolumeClaim"] == claim
    assert {path for path, volume in mounted.items() if not volume["readOnly"]} == {"/tmp"}
    assert all("subPath" not in mount for mount in only_container(pods(rendered(overlay))["oneslate"])["volumeMounts"])


def test_the_example_of_keys_is_a_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(SECRETS["oneslate-keys"]["keys.json"])
    (key,) = read_keys(tmp_path / "keys.json")
    assert set(key.scopes) == {"recommend", "events"}


@pytest.mark.parametrize("name", ["oneslate", "oneslate-collector"])
def test_the_example_of_a_url_names_the_authority_where_it_is_mounted(overlay: str, name: str) -> None:
    url = urlsplit(SECRETS["oneslate-redis"]["url"])
    assert url.scheme == "rediss"
    (place,) = parse_qs(url.query)["ssl_ca_certs"]
    secret = mounts(overlay, name)[str(Path(place).parent)]["secret"]
    assert isinstance(secret, dict)
    assert secret["secretName"] == "oneslate-redis"
    # Of this Secret the file alone, and none where the server's authority is a public one.
    assert secret["items"] == [{"key": Path(place).name, "path": Path(place).name}]
    assert secret["optional"] is True
    assert Path(place).name in SECRETS["oneslate-redis"]


def test_variables_of_services_do_not_pass_for_settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the kubelet sets for a Service called `oneslate`.
    with pytest.raises(ValueError, match="ONESLATE_PORT"):
        load(monkeypatch, environment(overlay, "oneslate") | {"ONESLATE_PORT": "tcp://10.0.0.1:80"})
    assert all(pod["spec"]["enableServiceLinks"] is False for pod in pods(everything(overlay)).values())


def test_probes_ask_for_pages_that_are_there_and_need_no_key(overlay: str) -> None:
    pages = create_app(Settings(runner="fake")).openapi()["paths"]
    pod = pods(rendered(overlay))["oneslate"]
    container = only_container(pod)
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    for probe in asked.values():
        assert "security" not in pages[probe["path"]]["get"]
        assert probe["port"] in ports(pod)
    assert {kind: probe["path"] for kind, probe in asked.items()} == {
        # A replica that is not ready, or on its way out, must not be killed for it.
        "liveness": "/livez",
        "readiness": "/readyz",
        "startup": "/readyz",
    }


def test_a_replica_has_time_to_start_and_to_drain(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, environment(overlay, "oneslate"))
    pod = pods(rendered(overlay))["oneslate"]
    container = only_container(pod)
    startup, pause_s = container["startupProbe"], container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300
    assert pause_s >= 5
    # The pause counts, and the drain is twice: connections first, then the batcher.
    assert pod["spec"]["terminationGracePeriodSeconds"] > pause_s + 2 * settings.drain_s


def test_no_replica_goes_before_its_successor_is_ready(overlay: str) -> None:
    deployment = find(rendered(overlay), "Deployment")["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    budget = find(rendered(overlay), "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    if overlay != "kind":
        scaler = find(rendered(overlay), "HorizontalPodAutoscaler")["spec"]
        assert 2 <= scaler["minReplicas"] <= scaler["maxReplicas"]
    # Else every `kubectl apply` would take back what the autoscaler did.
    assert "replicas" not in deployment


def test_the_collector_is_one_and_its_command_is_one_of_ours(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = find(rendered(overlay), "Deployment", "oneslate-collector")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    pod = pods(rendered(overlay))["oneslate-collector"]
    name, *arguments = only_container(pod)["args"]
    given = get_command(cli).commands[name].make_context(name, arguments).params  # type: ignore[attr-defined]
    assert given["metrics_host"] == "0.0.0.0"
    assert {given["metrics_port"]} == set(ports(pod).values())
    volume = mounts(overlay, "oneslate-collector")[str(given["out"])]
    assert volume["persistentVolumeClaim"] == {"claimName": "oneslate-event-log"}
    assert only_container(pod)["livenessProbe"]["httpGet"] == {"path": "/metrics", "port": "metrics"}
    for variable, value in environment(overlay, "oneslate-collector").items():
        monkeypatch.setenv(variable, value)
    assert CollectSettings.load().history.url is not None


def test_the_demo_bundle_is_built_as_by_compose_where_the_service_looks() -> None:
    pod = pods(everything("cpu"))["oneslate-demo-bundle"]
    container = only_container(pod)
    assert "command" not in container  # the image's own
    assert container["args"] == COMPOSE["trainer"]["command"]
    bundle = Path(configured("cpu")["ONESLATE_BUNDLE"])
    assert container["args"][-1] == str(bundle)
    volume = mounts("cpu", "oneslate-demo-bundle")[str(bundle.parent)]
    assert volume["persistentVolumeClaim"] == {"claimName": "oneslate-bundles"}
    assert volume["readOnly"] is False
    assert mounts("cpu", "oneslate-loader")[str(bundle.parent)]["readOnly"] is False


def test_redis_is_set_as_its_file_says_and_bounded_below_its_container() -> None:
    redis = only_container(pods(rendered("kind"))["oneslate-redis"])
    program, *arguments = redis["args"]
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    lines = [line for line in (ROOT / "deploy/redis/redis.conf").read_text().splitlines() if line and line[0] != "#"]
    wanted = {f"--{name}": value.strip('"') for name, value in (line.split(maxsplit=1) for line in lines)}
    assert program == COMPOSE["redis"]["command"][0]
    # Half of it: a rewrite of the append-only file copies pages.
    limit = redis["resources"]["limits"]["memory"]
    assert given == wanted | {"--maxmemory": "512mb"}
    assert limit == "1Gi"
    url = re.search(r"redis://([\w-]+):(\d+)/0", (KUBERNETES / "secrets.example.yaml").read_text())
    assert url is not None
    service = find(rendered("kind"), "Service", url[1])["spec"]
    assert service["ports"][0]["port"] == int(url[2])


def test_the_gpu_overlay_asks_for_one_gpu_and_the_others_for_none() -> None:
    for name in OVERLAYS:
        spec = pods(rendered(name))["oneslate"]["spec"]
        limits = only_container({"spec": spec})["resources"]["limits"]
        tolerated = {one["key"] for one in spec.get("tolerations", [])}
        assert limits.get("nvidia.com/gpu") == ("1" if name == "gpu" else None)
        assert tolerated == ({"nvidia.com/gpu"} if name == "gpu" else set())
        collector = pods(rendered(name))["oneslate-collector"]
        assert "tolerations" not in collector["spec"]
