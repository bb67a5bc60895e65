"""Prometheus' own word on configuration, rules and metrics: `pytest -m prometheus tests/monitoring`.

Needs Debian's package prometheus, which has promtool.
"""

import subprocess
from pathlib import Path

import pytest
import yaml
from live_http import fake_settings, live_client
from monitored import DEPLOY, RULE_FILES
from prometheus_client import CollectorRegistry, generate_latest

from service.eventlog.collector import CollectorMetrics

pytestmark = pytest.mark.prometheus

RULES = DEPLOY / "prometheus"


def promtool(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_the_configuration_and_its_rules_are_valid() -> None:
    said = promtool("check", "config", str(DEPLOY / "prometheus.yml"))
    for file in RULE_FILES:
        assert f"Checking {RULES / file}" in said
        num_rules = sum(len(group["rules"]) for group in yaml.safe_load((RULES / file).read_text())["groups"])
        assert f"SUCCESS: {num_rules} rules found" in promtool("check", "rules", str(RULES / file))


def test_alerts_fire_when_they_should_and_else_do_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(RULES / "alerts_test.yml"))


def test_an_alert_that_never_fires_is_found_out(tmp_path: Path) -> None:
    for file in RULES.glob("*.yml"):
        (tmp_path / file.name).write_text(file.read_text().replace("ratio_rate5m > 0.01", "ratio_rate5m > 0.1"))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "alerts_test.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "OneSlatePopularSlates" in done.stderr


def test_names_and_help_of_the_services_metrics_are_as_prometheus_wants_them() -> None:
    with live_client(fake_settings()) as client:
        assert client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 3}).status_code == 200
        assert client.post("/v1/recommend", json={"user_id": "ann"}).status_code == 422
        text = client.get("/metrics").text
    assert promtool("check", "metrics", text=text) == ""


def test_names_and_help_of_the_collectors_metrics_are_as_prometheus_wants_them() -> None:
    registry: CollectorRegistry = CollectorMetrics().registry
    assert promtool("check", "metrics", text=generate_latest(registry).decode()) == ""
