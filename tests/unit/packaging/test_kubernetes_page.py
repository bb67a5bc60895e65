"""deploy/kubernetes/README.md names what is there."""

import itertools
import re
import shlex

import yaml
from kustomize import containers
from manifests import KUBERNETES, OVERLAYS, ROOT, configured, everything, rendered
from typer.main import get_command

from oneslate import cli
from service.app import create_app
from service.metrics import Metrics
from service.settings import Settings, _names

PAGE = (KUBERNETES / "README.md").read_text()
COMMANDS = [
    line.split("  #")[0].split(" > ")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]


def test_every_setting_that_is_named_is_one_and_those_that_are_set_are_explained() -> None:
    known = set(_names(Settings, "ONESLATE_"))
    named = set(re.findall(r"ONESLATE_[A-Z_]+", PAGE))
    assert named
    assert named <= known
    operations = (ROOT / "docs/operations.md").read_text()
    for overlay in OVERLAYS:
        assert all(f"`{name}`" in operations for name in configured(overlay))


def test_every_file_that_is_named_is_there() -> None:
    commanded = set(re.findall(r"deploy/kubernetes/[\w./-]+", " ".join(COMMANDS)))
    assert len(commanded) >= 5
    assert {path for path in commanded if not (ROOT / path).exists()} == set()
    pattern = r"`((?:base|overlays|components|bundles)/[\w./-]*|[\w.-]+\.yaml)`"
    named = set(re.findall(pattern, PAGE))
    assert {
        path for path in named if not any((folder / path).exists() for folder in (KUBERNETES, KUBERNETES / "base"))
    } == set()


def test_nothing_in_the_folder_goes_unmentioned() -> None:
    parts = {f"{path.parent.name}/{path.name}" for path in KUBERNETES.glob("*/*") if path.is_dir()}
    parts |= {
        path.name
        for path in KUBERNETES.iterdir()
        if path.name not in {"README.md", "bundles", "components", "overlays"}
    }
    assert len(parts) == 10
    assert {part for part in parts if f"`{part}`" not in PAGE} == set()


def test_commands_of_ours_are_ones_that_are_there() -> None:
    ours = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("oneslate ")]
    assert len(ours) >= 4
    for name, sub, *arguments in ours:
        assert name == "keys"
        get_command(cli).commands[name].commands[sub].make_context(sub, arguments)  # type: ignore[attr-defined]


def test_whatever_changes_the_file_of_keys_is_followed_by_its_secret() -> None:
    blocks = [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)]
    changes = 0
    for block in blocks:
        for number, line in enumerate(block):
            if re.match(r"oneslate keys (new|revoke) ", line):
                changes += 1
                later = block[number + 1 :]
                following = itertools.takewhile(lambda each: not re.match(r"oneslate keys (new|revoke) ", each), later)
                assert any("create secret generic oneslate-keys " in each for each in following), line
    assert changes == 4


def test_an_overlay_is_applied_after_everything_that_it_needs() -> None:
    steps, _ = PAGE.split("## Before it is applied\n")[1].split("To try it all on one machine")
    before, after = steps.split("kubectl apply -k deploy/kubernetes/overlays/")
    assert re.findall(r"^(\d+)\. ", before, re.MULTILINE) == [str(number) for number in range(1, 11)]
    # What comes then asks, and changes nothing.
    (rest,) = re.findall(r"\n(.*?)```", after, re.DOTALL)
    assert all(re.match(r"kubectl (-n oneslate )?(get|rollout status) ", line) for line in rest.splitlines())
    assert "```sh" not in after


def test_paths_of_the_api_are_ones_that_are_there() -> None:
    paths = create_app(Settings(runner="fake")).openapi()["paths"]
    called = re.findall(r"`(GET|POST) (/v1/[^`]+)`", PAGE)
    assert len(called) >= 2
    assert all(method.lower() in paths[path] for method, path in called)


def test_both_secrets_are_made_with_the_members_that_pods_ask_for() -> None:
    made: dict[str, set[str]] = {}
    for line in COMMANDS:
        if found := re.search(r"create secret generic ([\w-]+) (.*)", line):
            members = re.findall(r"--from-(?:file|literal)='?([\w.]+)", found[2])
            made.setdefault(found[1], set()).update(members)
    asked = {
        (one["valueFrom"]["secretKeyRef"]["name"], one["valueFrom"]["secretKeyRef"]["key"])
        for each in rendered("cpu")
        for container in containers(each)
        for one in container.get("env", [])
    }
    volumes = re.findall(r"secretName: ([\w-]+)", yaml.safe_dump(rendered("cpu")))
    assert made.keys() == {name for name, _ in asked} | set(volumes)
    assert all(member in made[name] for name, member in asked)
    assert made["oneslate-keys"] == {configured("cpu")["ONESLATE_KEYS_FILE"].rpartition("/")[2]}
    assert made["oneslate-redis"] == {"url", "ca.pem"}
    assert not any(one["kind"] == "Secret" for overlay in OVERLAYS for one in rendered(overlay)), (
        "applying it would undo them"
    )


def test_objects_and_metrics_that_are_named_are_there() -> None:
    names = {one["metadata"]["name"] for one in everything("kind")} | {"oneslate_queue_delay_seconds"}
    for name in re.findall(r"(?:deployment|service|job|pod)/([\w-]+)", " ".join(COMMANDS)):
        assert name in names
    metrics = Metrics().render().decode()
    for name in re.findall(r"`(oneslate_\w+)`", PAGE):
        assert name in names or name in metrics
