"""The alert rules against docs/operations.md, and both against the metrics that there are.

Whether the rules fire is `promtool`'s to say: tests/monitoring.
"""

import re
from pathlib import Path

import pytest
import yaml
from monitored import ALERTS, PANELS, RECORDS, ROOT, RULE_FILES, RULES, expanded
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.eventlog.collector import CollectorMetrics
from service.metrics import Metrics

PAGE = (ROOT / "docs" / "operations.md").read_text()
METRIC = re.compile(r"\b(?:oneslate_\w+|up\{job=\"[a-z-]+\"\})")
ROWS = {
    name: {"anchor": anchor, "condition": condition, "severity": severity.strip()}
    for anchor, name, condition, severity in re.findall(
        r'^\| <a id="([a-z-]+)"></a>`(\w+)` \|(.*?)\| (critical|warning) \|', PAGE, re.MULTILINE
    )
}


def samples(registry: CollectorRegistry) -> set[str]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {f"{family.name}{suffix}" for family in families for suffix in ("", "_total", "_bucket", "_sum", "_count")}


def test_rules_and_page_name_the_same_alerts() -> None:
    assert len(ALERTS) + len(RECORDS) == len(RULES), "a name stands twice"
    assert set(ALERTS) == set(ROWS)
    assert PAGE.count('<a id="alert-') == len(ROWS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_whole_and_leads_to_its_row(name: str) -> None:
    rule, row = ALERTS[name], ROWS[name]
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"] == {"severity": row["severity"]}
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{row['anchor']}"
    assert row["anchor"] == "alert" + re.sub("([A-Z])", r"-\1", name.removeprefix("OneSlate")).lower()


@pytest.mark.parametrize("name", ALERTS)
def test_rule_and_row_speak_of_the_same_metrics_for_the_same_time(name: str) -> None:
    rule, condition = ALERTS[name], ROWS[name]["condition"]
    asked = {re.sub("_(bucket|sum|count)$", "", found) for found in METRIC.findall(expanded(rule["expr"]))}
    assert asked == set(METRIC.findall(condition))
    said = re.search(r", (\d+) (s|min)", condition)
    assert rule["for"] == ("0s" if said is None else f"{said[1]}{said[2][0]}")


@pytest.mark.parametrize("expr", [rule["expr"] for rule in RULES])
def test_an_expression_asks_for_metrics_that_there_are(expr: str) -> None:
    known = samples(Metrics().registry) | samples(CollectorMetrics().registry)
    asked = re.findall(r"oneslate_\w+", expanded(expr))
    assert set(asked) <= known
    assert "oneslate:" not in expanded(expr), "a recorded name that nothing records"
    for found in asked:
        if found.endswith(("_total", "_bucket", "_sum", "_count")):
            assert re.search(rf"(rate|increase)\({found}\b", expanded(expr))


def test_every_record_is_asked_for() -> None:
    asking = [*(rule["expr"] for rule in RULES), *(target["expr"] for panel in PANELS for target in panel["targets"])]
    assert {name for name in RECORDS if not any(name in expr for expr in asking)} == set()


def test_every_alert_is_tested_in_trouble_and_without() -> None:
    tests = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == set(ALERTS)
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == set(ALERTS)


def test_buckets_that_tests_make_up_are_ones_of_the_service() -> None:
    metrics = Metrics()
    metrics.request_seconds.labels("/v1/recommend")
    families = text_string_to_metric_families(metrics.render().decode())
    name = "oneslate_http_request_seconds_bucket"
    known = {float(one.labels["le"]) for family in families for one in family.samples if one.name == name}
    made_up = re.findall(rf'{name}{{.*le="([^"]*)"', (ROOT / "deploy" / "prometheus" / "alerts_test.yml").read_text())
    assert {float(bound) for bound in made_up} <= known


def test_prometheus_reads_the_rules_where_compose_mounts_them() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]
    mounts = dict(mount.split(":")[:2] for mount in compose["volumes"])
    folder = Path(mounts["./deploy/prometheus.yml"]).parent
    files = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["rule_files"]
    assert {folder / file for file in files} == {Path(mounts["./deploy/prometheus"]) / file for file in RULE_FILES}
    assert all((ROOT / "deploy" / file).is_file() for file in files)
