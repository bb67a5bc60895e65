"""Prometheus' configuration and Grafana's dashboard against the metrics that the service has."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "oneslate.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


def labels_by_sample() -> dict[str, set[str]]:
    """Every sample that a scrape can bring -> its labels."""
    metrics = Metrics()
    for metric in vars(metrics).values():
        if names := getattr(metric, "_labelnames", ()):
            metric.labels(*names)
    text = metrics.render().decode()
    return {
        sample.name: set(sample.labels) for family in text_string_to_metric_families(text) for sample in family.samples
    }


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_panel_asks_for_metrics_and_labels_that_exist(title: str, query: str) -> None:
    known = labels_by_sample()
    asked = re.findall(r"(oneslate_\w+)(?:\{([^}]*)\})?", query)
    assert asked
    labels: set[str] = set()
    for name, selector in asked:
        assert name in known, f"{title}: the service has no {name}"
        labels |= known[name]
        assert {part.split("=")[0] for part in selector.split(",") if part} <= known[name]
    for grouping in re.findall(r"by \(([^)]*)\)", query):
        assert {label.strip() for label in grouping.split(",")} <= labels
    assert query.count("(") == query.count(")")


def test_counters_are_read_as_rates_and_gauges_are_not() -> None:
    for title, query in QUERIES:
        for name in re.findall(r"oneslate_\w+", query):
            cumulative = name.endswith(("_total", "_sum", "_count", "_bucket"))
            assert (f"rate({name}" in query) == cumulative, title


def test_every_route_in_a_query_is_one_of_the_service() -> None:
    app = create_app(Settings(runner="fake"))
    for _, query in QUERIES:
        for route in re.findall(r'route="([^"]*)"', query):
            assert route in app.openapi()["paths"]


def test_no_metric_is_without_a_panel() -> None:
    shown = " ".join(query for _, query in QUERIES)
    families = {family.name for family in text_string_to_metric_families(Metrics().render().decode())}
    assert {name for name in families if name not in shown and not name.endswith("_created")} == set()


def test_panels_do_not_overlap_and_have_distinct_ids() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert cells.isdisjoint(own)
        cells |= own
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_dashboard_finds_its_data_source_and_grafana_finds_the_dashboard() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    providers = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "oneslate.yml").read_text())["providers"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {sources[0]["uid"]}
    assert sources[0]["url"] == "http://prometheus:9090"
    mounts = dict(mount.split(":")[:2] for mount in compose["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == providers[0]["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{providers[0]['options']['path']}/oneslate.json"


def test_prometheus_scrapes_the_service_where_it_listens() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (job,) = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
    assert job["metrics_path"] in create_app(Settings(runner="fake")).openapi()["paths"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in compose
    assert compose[host]["ports"][0].endswith(f":{port}")
    assert "./deploy/prometheus.yml:/etc/prometheus/prometheus.yml:ro" in compose["prometheus"]["volumes"]


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    interval = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert source["jsonData"]["timeInterval"] == interval


def test_legends_name_labels_that_their_query_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept
