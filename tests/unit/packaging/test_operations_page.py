"""docs/operations.md names every metric, setting, problem and reason, and none that has gone."""

import re
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.api.answers import NotReadyReason
from service.eventlog.collector import CollectorMetrics
from service.metrics import Metrics
from service.problems import PROBLEM_TYPES
from service.recommend import REASONS
from service.settings import Settings, _names

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def named(text: str, pattern: str) -> set[str]:
    """Of tables, what stands in the first column."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(f"`({pattern})`", row)}


@pytest.mark.parametrize(
    ("title", "registry"), [("Metrics", Metrics().registry), ("The event log", CollectorMetrics().registry)]
)
def test_every_metric_is_explained(title: str, registry: CollectorRegistry) -> None:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    assert named(section(title), r"oneslate_\w+") == {name for name in names if not name.endswith("_created")}


def test_every_setting_is_explained() -> None:
    groups = {
        "ONESLATE_HISTORY",
        "ONESLATE_EVENT_LOG",
        "ONESLATE_CATALOG",
        "ONESLATE_BATCH",
        "ONESLATE_LIMITS",
        "ONESLATE_FAKE",
    }
    assert named(section("Settings"), r"ONESLATE_\w+") == set(_names(Settings, "ONESLATE_")) - groups


def test_defaults_are_those_of_the_code() -> None:
    for line in section("Settings").splitlines():
        if not line.startswith("| `"):
            continue
        _, names, defaults, *_ = line.split("|")
        # Commas between values have a space behind them, those inside of a number have none.
        for name, default in zip(re.findall(r"`(\w+)`", names), defaults.strip().split(", "), strict=True):
            of: object = Settings
            *groups, last = name.removeprefix("ONESLATE_").lower().split("__")
            for group in groups:
                of = Settings.model_fields[group].annotation
            value = of.model_fields[last].get_default(call_default_factory=True)  # type: ignore[attr-defined]
            if value in (None, {}):
                assert default == "none", name
            elif isinstance(value, bool | str):
                assert default == str(value).lower(), name
            else:
                assert float(default.replace(",", "")) == value, name


def test_every_problem_is_explained_with_its_status() -> None:
    explained = {
        name: int(line.split("|")[2]) for line in section("Problems").splitlines() for name in named(line, r"[a-z-]+")
    }
    assert explained == {problem.code: problem.status for problem in PROBLEM_TYPES}


@pytest.mark.parametrize(
    ("title", "reasons"), [("Probes", get_args(NotReadyReason)), ("What an answer says of itself", REASONS)]
)
def test_every_reason_is_explained(title: str, reasons: tuple[str, ...]) -> None:
    assert named(section(title), r"[a-z_]+") == set(reasons)


def test_alerts_name_metrics_and_settings_that_there_are() -> None:
    exposed = (generate_latest(Metrics().registry) + generate_latest(CollectorMetrics().registry)).decode()
    for name in re.findall(r"oneslate_\w+", section("What to alert on")):
        assert re.search(rf"^# TYPE {name.removesuffix('_total')}(_total)? ", exposed, re.MULTILINE), name
    known = set(_names(Settings, "ONESLATE_"))
    for name in re.findall(r"ONESLATE_[A-Z_]+[A-Z]", PAGE):
        assert name in known or name.startswith("ONESLATE_FILTERS__"), name
