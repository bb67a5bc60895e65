"""deploy/kubernetes against Kubernetes' schemas, against what a restricted namespace admits, and against kubectl."""

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import prometheus_rule
import pytest
import yaml
from kustomize import Object, containers, documents, render
from manifests import (
    APPLIED,
    BESIDE,
    KUBERNETES,
    OVERLAYS,
    ROOT,
    applied,
    everything,
    find,
    only_container,
    pods,
    ports,
    rendered,
    selects,
)
from monitored import RULES

NEWEST = kubernetes_validate.latest_version()


@pytest.mark.parametrize("version", ["1.30", NEWEST])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_follows_its_schema_and_has_no_field_beside_it(overlay: str, version: str) -> None:
    for one in everything(overlay):
        if one["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # of an operator; see below
        kubernetes_validate.validate(one, version, strict=True)


def test_a_field_that_no_schema_knows_is_refused() -> None:
    deployment = copy.deepcopy(find(rendered("cpu"), "Deployment"))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 30
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)


@pytest.mark.kubectl
@pytest.mark.parametrize("folder", APPLIED)
def test_kubectl_renders_the_same(folder: str) -> None:
    command = ["kubectl", "kustomize", str(KUBERNETES / folder)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert by_name(list(yaml.safe_load_all(text))) == by_name(applied(folder))


def test_what_the_renderer_does_not_know_it_refuses(tmp_path: Path) -> None:
    head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    (tmp_path / "kustomization.yaml").write_text(head + "namePrefix: my-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        render(tmp_path)


def test_a_setting_that_changes_rolls_the_service_over(tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", KUBERNETES, tmp_path], check=True)
    before = find(rendered("cpu"), "Deployment")
    assert find(render(tmp_path / "kubernetes/overlays/cpu"), "Deployment") == before
    settings = tmp_path / "kubernetes/base/settings.env"
    settings.write_text(settings.read_text() + "ONESLATE_DEADLINE_MS=400\n")
    assert find(render(tmp_path / "kubernetes/overlays/cpu"), "Deployment") != before


def test_no_name_is_taken_twice_and_all_are_in_one_namespace() -> None:
    for overlay in OVERLAYS:
        objects = rendered(overlay)
        assert len(by_name(objects)) == len(objects)
        namespace = find(objects, "Namespace")["metadata"]["name"]
        beside = [one for folder in BESIDE for one in applied(folder)]
        namespaced = [one for one in objects + beside if one["kind"] != "Namespace"]
        assert {one["metadata"].get("namespace") for one in namespaced} == {namespace}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_may_run_in_a_namespace_that_is_restricted(overlay: str) -> None:
    labels = find(everything(overlay), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in pods(everything(overlay)).items():
        spec, context = pod["spec"], pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == user_of(name)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec.keys().isdisjoint({"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"})
        own = only_container(pod)
        assert own["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        kinds = {kind for volume in volumes.values() for kind in volume.keys() - {"name"}}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
        mounted = {mount["name"] for mount in own["volumeMounts"]}
        assert mounted == volumes.keys() | claimed_by_template(everything(overlay), name)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_memory_is_bounded_and_what_is_asked_for_is_given(overlay: str) -> None:
    for pod in pods(everything(overlay)).values():
        resources = only_container(pod)["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys()
        assert gibibytes(resources["requests"]["memory"]) <= gibibytes(resources["limits"]["memory"])
        assert "cpu" not in resources["limits"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_claim_secret_and_account_that_a_pod_names_is_there(overlay: str) -> None:
    objects = everything(overlay)
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for pod in pods(objects).values():
        account = pod["spec"].get("serviceAccountName")
        assert account is None or ("ServiceAccount", account) in names
        for volume in pod["spec"].get("volumes", []):
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
    assert find(objects, "ServiceAccount")["automountServiceAccountToken"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whatever_selects_pods_selects_those_of_one_kind_alone(overlay: str) -> None:
    objects = rendered(overlay)
    made = pods(objects)
    for one in objects:
        name, spec = one["metadata"]["name"], one.get("spec", {})
        if one["kind"] == "Service":
            assert [
                maker for maker, pod in made.items() if selects({"matchLabels": spec["selector"]}, pod["labels"])
            ] == [name]
            assert {port["targetPort"] for port in spec["ports"]} <= ports(made[name]).keys()
        elif one["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
            assert [maker for maker, pod in made.items() if selects(spec["selector"], pod["labels"])] == [name]
        for constraint in spec.get("template", {}).get("spec", {}).get("topologySpreadConstraints", []):
            assert selects(constraint["labelSelector"], made[name]["labels"])
            assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"


def test_replicas_are_spread_over_nodes_and_zones() -> None:
    spread = find(rendered("cpu"), "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]


def test_images_are_those_of_the_compose_file_and_the_dockerfile() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    expected = {
        "oneslate": compose["service"]["image"],
        "oneslate-collector": compose["service"]["image"],
        "oneslate-loader": compose["service"]["image"],
        "oneslate-redis": compose["redis"]["image"],
        "oneslate-demo-bundle": compose["trainer"]["image"],
    }
    for overlay in OVERLAYS:
        used = {name: only_container(pod)["image"] for name, pod in pods(everything(overlay)).items()}
        wanted = expected | ({"oneslate": "oneslate:gpu"} if overlay == "gpu" else {})
        assert used == {name: wanted[name] for name in used}
        assert len(used) == (5 if overlay == "kind" else 4)
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    tags = {image.split(":")[1] for image in {*expected.values(), "oneslate:gpu"} if image.startswith("oneslate:")}
    assert tags <= targets


def test_every_image_of_ours_is_named_where_a_registry_can_be_named(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    for path in (tmp_path / "kubernetes").glob("*/*/kustomization.yaml"):
        own = yaml.safe_load(path.read_text())
        for image in own.get("images", []):
            image["newName"] = "registry.example.com/oneslate"
        path.write_text(yaml.safe_dump(own))
    sent = [one for folder in APPLIED for one in render(tmp_path / "kubernetes" / folder)]
    images = {name: only_container(pod)["image"] for name, pod in pods(sent).items()}
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert images.pop("oneslate-redis") == compose["redis"]["image"]
    assert {name for name, image in images.items() if not image.startswith("registry.example.com/oneslate:")} == set()
    # No file has a pod that none of these folders sends.
    there = [one for path in KUBERNETES.glob("*/**/*.yaml") for one in documents(path)]
    whole = [one for one in there if any("image" in container for container in containers(one))]
    assert pods(whole).keys() == pods(sent).keys()


def test_the_monitors_scrape_what_the_services_offer() -> None:
    monitors = documents(KUBERNETES / "components/service-monitor/monitors.yaml")
    services = [one for one in rendered("cpu") if one["kind"] == "Service"]
    assert len(monitors) == len(services)
    for monitor in monitors:
        assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "ServiceMonitor")
        (endpoint,) = monitor["spec"]["endpoints"]
        (service,) = (one for one in services if selects(monitor["spec"]["selector"], one["metadata"]["labels"]))
        assert service["metadata"]["name"] == monitor["metadata"]["name"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        # The operator's own schema is not at hand: no field is used but these.
        assert monitor.keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert monitor["spec"].keys() == {"selector", "endpoints"}
        assert endpoint.keys() == {"port", "path", "interval", "scrapeTimeout"}
        assert int(endpoint["scrapeTimeout"].rstrip("s")) < int(endpoint["interval"].rstrip("s"))


def test_the_operators_rules_are_those_of_prometheus_written_out() -> None:
    assert prometheus_rule.FILE.read_text() == prometheus_rule.text(), "due: python tests/prometheus_rule.py"
    (rule,) = documents(prometheus_rule.FILE)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert rule["spec"].keys() == {"groups"}
    assert [one for group in rule["spec"]["groups"] for one in group["rules"]] == RULES


def test_rules_go_by_the_jobs_that_the_monitors_make() -> None:
    # The operator calls a job by the Service's name, where the monitor has no `jobLabel`.
    monitors = documents(KUBERNETES / "components/service-monitor/monitors.yaml")
    made = {monitor["metadata"]["name"] for monitor in monitors}
    assert set(re.findall(r'job="([^"]*)"', prometheus_rule.FILE.read_text())) == made
    assert made <= {one["metadata"]["name"] for one in rendered("cpu") if one["kind"] == "Service"}


def test_the_component_that_an_overlay_has_as_a_comment_can_be_taken_in(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    for overlay in ("cpu", "gpu"):
        file = tmp_path / "kubernetes/overlays" / overlay / "kustomization.yaml"
        file.write_text(re.sub(r"^# (components:|  - )", r"\1", file.read_text(), flags=re.MULTILINE))
        added = by_name(render(file.parent)).keys() - by_name(rendered(overlay)).keys()
        assert added == {
            ("ServiceMonitor", "oneslate"),
            ("ServiceMonitor", "oneslate-collector"),
            ("PrometheusRule", "oneslate"),
        }
        kinds = {kind for kind, _ in added}
        assert all(one["metadata"]["namespace"] == "oneslate" for one in render(file.parent) if one["kind"] in kinds)


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


def user_of(name: str) -> int:
    dockerfile = (ROOT / "Dockerfile").read_text()
    users = {int(number) for number in re.findall(r"^USER (\d+):\1$", dockerfile, re.MULTILINE)}
    (own,) = users
    return 999 if name == "oneslate-redis" else own


def claimed_by_template(objects: list[Object], name: str) -> set[str]:
    made: list[dict[str, Any]] = [
        one for one in objects if one["kind"] == "StatefulSet" and one["metadata"]["name"] == name
    ]
    return {claim["metadata"]["name"] for one in made for claim in one["spec"]["volumeClaimTemplates"]}


def gibibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) / {"Mi": 1024, "Gi": 1}[unit]


def test_no_pod_has_containers_that_these_tests_do_not_see() -> None:
    assert sum(1 for one in everything("kind") for _ in containers(one)) == len(pods(everything("kind")))
