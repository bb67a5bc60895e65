"""The objects of deploy/kubernetes, as tests look at them."""

from functools import cache
from pathlib import Path
from typing import Any

from kustomize import Object, documents, render

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "kind")
BESIDE = ("bundles/demo", "bundles/loader")
"""What is applied by itself."""
APPLIED = (*(f"overlays/{name}" for name in OVERLAYS), *BESIDE)


@cache
def applied(folder: str) -> list[Object]:
    """What `kubectl apply -k` sends. Not to be changed."""
    return render(KUBERNETES / folder)


def rendered(overlay: str) -> list[Object]:
    """What `kubectl apply -k` sends for an overlay. Not to be changed."""
    return applied(f"overlays/{overlay}")


def everything(overlay: str) -> list[Object]:
    """With what is applied beside the overlay: bundles, secrets, monitors."""
    extra = ["secrets.example.yaml", *(f"components/service-monitor/{name}.yaml" for name in ("monitors", "rules"))]
    objects = rendered(overlay) + [one for folder in BESIDE for one in applied(folder)]
    return objects + [one for name in extra for one in documents(KUBERNETES / name)]


def find(objects: list[Object], kind: str, name: str = "oneslate") -> Object:
    """The one of that kind and name."""
    (found,) = (one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def pods(objects: list[Object]) -> dict[str, Object]:
    """Name of what makes them -> labels and spec of the pods."""
    made = {}
    for one in objects:
        if one["kind"] in {"Deployment", "StatefulSet", "Job"}:
            template = one["spec"]["template"]
        elif one["kind"] == "Pod":
            template = one
        else:
            continue
        made[one["metadata"]["name"]] = {"labels": template["metadata"]["labels"], "spec": template["spec"]}
    return made


def only_container(pod: Object) -> Object:
    """Of a pod with one."""
    (container,) = pod["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def ports(pod: Object) -> dict[str, int]:
    """Name -> number."""
    return {port["name"]: port["containerPort"] for port in only_container(pod).get("ports", [])}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes what bears these labels."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def configured(overlay: str) -> dict[str, str]:
    """The service's settings in its ConfigMap, by the name that its pods ask for."""
    (source,) = only_container(pods(rendered(overlay))["oneslate"])["envFrom"]
    data: dict[str, str] = find(rendered(overlay), "ConfigMap", source["configMapRef"]["name"])["data"]
    return data
