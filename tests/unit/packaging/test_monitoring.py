"""Prometheus' configuration and Grafana's dashboard against the metrics that the service has."""

import copy
import json
import re
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard
from monitored import ALERTS, DASHBOARD, DEPLOY, PANELS, ROOT, expanded
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.eventlog.collector import CollectorMetrics
from service.metrics import Metrics
from service.settings import Settings, _names

GRAFANA = DEPLOY / "grafana"
QUERIES = [(panel["title"], expanded(target["expr"])) for panel in PANELS for target in panel["targets"]]
OF_PROMETHEUS = {"ALERTS": {"alertname", "alertstate", "severity"}, "up": {"job", "instance"}}


def labels_by_sample() -> dict[str, set[str]]:
    """Every sample that a scrape can bring -> its labels."""
    found = dict(OF_PROMETHEUS)
    for metrics in (Metrics(), CollectorMetrics()):
        for metric in vars(metrics).values():
            if names := getattr(metric, "_labelnames", ()):
                metric.labels(*names)
        families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
        found |= {sample.name: set(sample.labels) for family in families for sample in family.samples}
    return found


ANNOTATION_OF_PROMETHEUS = {"titleFormat", "textFormat", "step"}
"""Members of an annotation that its data source reads, and not Grafana."""


def test_grafanas_own_models_know_every_member_of_the_dashboard() -> None:
    plugins.register_default_plugins()
    expected = copy.deepcopy(DASHBOARD)
    for annotation in expected["annotations"]["list"]:
        assert annotation["datasource"]["type"] == "prometheus"
        for name in ANNOTATION_OF_PROMETHEUS:
            annotation.pop(name, None)
    known = json.loads(json.dumps(GrafanaDashboard.from_json(DASHBOARD), cls=JSONEncoder))
    assert _lost(expected, known) == []


def _lost(said: Any, known: Any, place: str = "") -> list[str]:
    """Places of `said` that `known` does not have, or has otherwise."""
    if isinstance(said, dict):
        return [
            lost
            for name, value in said.items()
            for lost in _lost(value, known.get(name) if isinstance(known, dict) else None, f"{place}/{name}")
        ]
    if isinstance(said, list) and isinstance(known, list) and len(said) == len(known):
        return [lost for i, pair in enumerate(zip(said, known, strict=True)) for lost in _lost(*pair, f"{place}/{i}")]
    return [] if said == known else [place]


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_panel_asks_for_metrics_and_labels_that_exist(title: str, query: str) -> None:
    known = labels_by_sample()
    asked = re.findall(r"\b(oneslate_\w+|ALERTS|up)\b(?:\{([^}]*)\})?", query)
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
    text = (generate_latest(Metrics().registry) + generate_latest(CollectorMetrics().registry)).decode()
    families = {family.name for family in text_string_to_metric_families(text)}
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
    assert {panel["datasource"]["uid"] for panel in PANELS} == {sources[0]["uid"]}
    assert sources[0]["url"] == "http://prometheus:9090"
    mounts = dict(mount.split(":")[:2] for mount in compose["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == providers[0]["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{providers[0]['options']['path']}/oneslate.json"


def jobs() -> dict[str, dict[str, Any]]:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    return {job["job_name"]: job for job in config["scrape_configs"]}


def test_prometheus_scrapes_the_service_where_it_listens() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert set(jobs()) == {"oneslate", "oneslate-collector"}
    job = jobs()["oneslate"]
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
    for panel in PANELS:
        for target in panel["targets"]:
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expanded(target["expr"])))))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


QUESTIONS = [
    "Are users served?", "How fast?", "From which source?", "How full is the batcher?", "Is the catalog fresh?",
    "Is the model healthy?", "Is Redis well?", "Is the event log drained?",
]  # fmt: skip


def test_rows_are_an_operators_questions_in_order() -> None:
    places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in DASHBOARD["panels"]]
    assert places == sorted(places), "Grafana shows panels where they stand, readers of the file in its order"
    assert DASHBOARD["panels"][0]["type"] == "row"
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == QUESTIONS
    follows = zip(DASHBOARD["panels"], DASHBOARD["panels"][1:], strict=False)
    assert not any(one["type"] == next_one["type"] == "row" for one, next_one in follows), "a question without panels"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_description_says_what_to_do_and_names_alerts_that_there_are(panel: dict[str, Any]) -> None:
    assert re.search(r"(^|\. |\? )Do: \w", panel["description"])
    assert set(re.findall(r"OneSlate\w+", panel["description"])) <= set(ALERTS)
    known = set(_names(Settings, "ONESLATE_"))
    assert set(re.findall(r"ONESLATE_[A-Z_]+", panel["description"])) <= known


def test_every_alert_has_a_panel_that_shows_why() -> None:
    described = " ".join(panel["description"] for panel in PANELS)
    assert {name for name in ALERTS if not re.search(rf"\b{name}\b", described)} == set()
