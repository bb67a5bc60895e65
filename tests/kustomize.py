"""What `kubectl kustomize` renders, for as much of kustomize as deploy/kubernetes uses; anything else is refused.

tests/unit/packaging/test_kubernetes_objects.py compares it with kubectl itself, where that is installed.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
_KNOWN = {
    "kustomization": {
        "apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "patches", "images",
    },
    "generator": {"name", "behavior", "envs", "literals"},
    "patch": {"path"},
    "image": {"name", "newName", "newTag"},
}  # fmt: skip
_API_VERSIONS = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}
_SAFE_LETTERS = str.maketrans("013ae", "ghkmt")
_CLUSTER_WIDE = {"Namespace"}


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization.

    Raises:
        ValueError: it uses something that is not known here.
    """
    objects = _accumulate(folder)
    for config in [one for one in objects if one["kind"] == "ConfigMap"]:
        name = config["metadata"]["name"]
        config["metadata"]["name"] = f"{name}-{_digest(config)}"
        for container in (container for one in objects for container in containers(one)):
            for source in container.get("envFrom", []):
                if source.get("configMapRef", {}).get("name") == name:
                    source["configMapRef"]["name"] = config["metadata"]["name"]
    return objects


def containers(one: Object) -> Iterator[Object]:
    """Of a pod, or of what makes pods."""
    spec = one.get("spec", {})
    yield from spec.get("template", {"spec": spec}).get("spec", {}).get("containers", [])


def documents(path: Path) -> list[Object]:
    """The objects of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def _accumulate(folder: Path, inherited: list[Object] | None = None) -> list[Object]:
    kustomization = _known("kustomization", yaml.safe_load((folder / "kustomization.yaml").read_text()))
    if _API_VERSIONS.get(kustomization["kind"]) != kustomization["apiVersion"]:
        raise ValueError(f"{folder}: {kustomization['apiVersion']} has no {kustomization['kind']}")
    if (kustomization["kind"] == "Component") != (inherited is not None):
        raise ValueError(f"{folder}: components stand under `components`, all else under `resources`")
    objects = inherited or []
    for name in kustomization.get("resources", []):
        place = folder / name
        objects += _accumulate(place) if place.is_dir() else documents(place)
    for name in kustomization.get("components", []):
        objects = _accumulate(folder / name, objects)
    for generator in kustomization.get("configMapGenerator", []):
        _generate(folder, _known("generator", generator), objects)
    for entry in kustomization.get("patches", []):
        for patch in documents(folder / _known("patch", entry)["path"]):
            _apply(patch, objects)
    for image in kustomization.get("images", []):
        _rename(_known("image", image), objects)
    if "namespace" in kustomization:
        for one in objects:
            if one["kind"] not in _CLUSTER_WIDE:
                one["metadata"]["namespace"] = kustomization["namespace"]
    return objects


def _known(what: str, given: Object) -> Object:
    if unknown := given.keys() - _KNOWN[what]:
        raise ValueError(f"a {what} with {sorted(unknown)} is not rendered here")
    return given


def _generate(folder: Path, generator: Object, objects: list[Object]) -> None:
    lines = list(generator.get("literals", []))
    for name in generator.get("envs", []):
        lines += [line for line in (folder / name).read_text().splitlines() if line and not line.startswith("#")]
    data = dict(line.split("=", 1) for line in lines)
    if generator.get("behavior", "create") == "create":
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})
    elif generator["behavior"] == "merge":
        _find(objects, "ConfigMap", generator["name"])["data"] |= data
    else:
        raise ValueError(f"a generator that does {generator['behavior']} is not rendered here")


def _find(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def _apply(patch: Object, objects: list[Object]) -> None:
    target = _find(objects, patch["kind"], patch["metadata"]["name"])
    if patch.get("$patch") == "delete":
        objects.remove(target)
    else:
        _merge(target, patch)


def _merge(target: Object, patch: Object) -> None:
    """A strategic merge. Of lists only containers are merged, by name; all others that patches name are replaced."""
    for key, value in patch.items():
        if key.startswith("$"):
            raise ValueError(f"{key} is not rendered here")
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif key == "containers":
            for one in value:
                (known,) = (each for each in target[key] if each["name"] == one["name"])
                _merge(known, one)
        elif key in {"env", "envFrom", "ports", "volumes", "volumeMounts", "topologySpreadConstraints"}:
            raise ValueError(f"a patch of {key} is not rendered here")
        else:
            target[key] = value


def _rename(image: Object, objects: list[Object]) -> None:
    for container in (container for one in objects for container in containers(one)):
        name, _, tag = container["image"].partition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def _digest(config: Object) -> str:
    """As kustomize names a generated object by what it says; of its name it takes nothing."""
    said = {"kind": "ConfigMap", "name": "", "data": config["data"]}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10].translate(_SAFE_LETTERS)
