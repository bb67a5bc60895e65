"""Every panel's query and every rule, asked of a real Prometheus that scrapes a live service and a collector.

`pytest -m prometheus tests/monitoring` (Debian's package prometheus); `--queries-table FILE` keeps what came back.
"""

import itertools
import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from live_http import fake_settings, free_port, live_client
from monitored import PANELS, RULES
from prometheus_server import Prometheus, running, until, write_config

from service.bundle import Manifest
from service.bundle.manifest import score_keys
from service.history.embedded import EmbeddedRedis
from service.inference.fake_runner import FakeRunner, fake_manifest
from service.settings import EventLogSettings

pytestmark = pytest.mark.prometheus

JSON = {"Content-Type": "application/json"}
SIDES = r" (?:==|>|<) | and (?:on \(\) )?"
RATE_INTERVAL = "20s"
"""What Grafana puts in the place of `$__rate_interval`, about."""


class Query(NamedTuple):
    """Where it stands, and what is asked."""

    place: str
    expr: str


def queries() -> list[Query]:
    """All of them; an alert's is what it compares, since the comparison keeps nothing where all is well."""
    found = [
        Query(f"{panel['title']}: {target['legendFormat']}", target["expr"].replace("$__rate_interval", RATE_INTERVAL))
        for panel in PANELS
        for target in panel["targets"]
    ]
    for rule in RULES:
        if "record" in rule:
            found.append(Query(f"record {rule['record']}", rule["expr"]))
            continue
        compared = [side for part in _alternatives(rule["expr"]) for side in re.split(SIDES, part)]
        assert len(compared) > 1, rule["expr"]
        # Of what must not be absent, what is there.
        sides = [re.sub(r"^absent\((.*)\)$", r"\1", side) for side in compared]
        found += [Query(f"alert {rule['alert']}", side) for side in sides if not _is_number(side)]
    return found


def _alternatives(expr: str) -> list[str]:
    """What stands on either side of an `or` that no parenthesis holds."""
    parts = [""]
    for word in expr.split(" "):
        if word == "or" and parts[-1].count("(") == parts[-1].count(")"):
            parts.append("")
        else:
            parts[-1] += f" {word}" if parts[-1] else word
    return parts


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[\d.]+", text) is not None


def live_a_little(client: httpx.Client, number: int) -> None:
    """Slates of both sources, events and changes of items of every outcome, and some problems."""
    user = f"user-{number % 4}"

    def slate(**body: Any) -> httpx.Response:
        return client.post("/v1/recommend", json={"user_id": user, "slate_size": 5, **body})

    shown = slate().json()
    at = time.time() - 10
    events = [
        {"event_id": f"e-{number // 2}", "user_id": user, "item_id": shown["items"][0]["item_id"], "timestamp": at},
        {"event_id": f"u-{number}", "user_id": user, "item_id": "unheard-of", "timestamp": at},
    ]
    assert client.post("/v1/events", json={"events": events}).status_code == 200
    assert slate(continue_from=shown["recommendation_id"]).status_code == 200
    assert slate(filter={"all_of": ["rare"]}, exclude_seen=False, temperature=1.0).status_code == 200
    assert slate(deadline_ms=1).json()["source"] == "popular"
    batch = {"requests": [{"user_id": f"other-{number}-{n}", "slate_size": 10} for n in range(4)]}
    assert client.post("/v1/recommend/batch", json=batch).status_code == 200
    items = [
        {"item_id": f"new-{number}", "title": "New", "embedding": [float(number % 7 - 3)] * 7 + [1.0]},
        {"item_id": f"item-{number % 100}", "title": "Changed"},
        {"item_id": f"new-{number - 1}", "removed": True},
        {"item_id": f"refused-{number}", "title": "Three values are no embedding", "embedding": [1.0] * 3},
    ]
    assert client.post("/v1/items", json={"items": items}).status_code == 200
    assert slate(slate_size=-1).status_code == 422
    assert client.post("/v1/events", content=b"{", headers=JSON).status_code == 400
    assert client.get(f"/v1/users/{user}/history").status_code == 200
    assert client.get("/nowhere").status_code == 404


def manifest_with_references() -> Manifest:
    """Of a bundle whose slates had a score of 0 an item, give or take 2: far from the fake runner's."""
    manifest = fake_manifest()
    scores = {
        key: value
        for num_items in range(1, manifest.slate_size + 1)
        for key, value in zip(score_keys(num_items), (0.0, 2.0), strict=True)
    }
    return manifest.model_copy(update={"slate_statistics": {"cold_share": 0.25, "popular_share": 0.25, **scores}})


@contextmanager
def under_load(client: httpx.Client) -> Iterator[None]:
    """A little at a time, so that the tests beside this one go on."""
    stopping, trouble = threading.Event(), []

    def work() -> None:
        try:
            for number in itertools.count():
                live_a_little(client, number)
                if stopping.wait(0.2):
                    return
        except BaseException as error:  # noqa: BLE001 - told to the test below
            trouble.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(timeout=60)
    assert trouble == []


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("monitored")
    with EmbeddedRedis(folder / "redis") as redis_url:
        settings = fake_settings(redis_url, event_log=EventLogSettings(max_rows=100_000))
        with live_client(settings, runner=FakeRunner(manifest_with_references())) as client:
            ports = [free_port(), free_port()]
            targets = {"oneslate": f"127.0.0.1:{client.base_url.port}", "oneslate-collector": f"127.0.0.1:{ports[0]}"}
            config = write_config(folder, targets)
            collector = [
                sys.executable, "-c", "import oneslate; oneslate.main()", "collect", "--out", str(folder / "log"),
                "--every", "0.5", "--metrics-port", str(ports[0]),
            ]  # fmt: skip
            server = [
                "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{ports[1]}", "--log.level=warn",
            ]  # fmt: skip
            with (
                running(collector, folder / "collector.log", ONESLATE_HISTORY__URL=redis_url),
                running(server, folder / "server.log"),
                under_load(client),
                closing(Prometheus(f"http://127.0.0.1:{ports[1]}")) as asked,
            ):
                until(asked.is_ready, (folder / "server.log").read_text)
                yield asked


def said(values: dict[str, float]) -> str:
    """Of a query, for the table."""
    shown = [f"{labels + ' ' if labels else ''}**{value:.4g}**" for labels, value in sorted(values.items())]
    return "; ".join(shown[:4]) + (f"; {len(shown) - 4} more" if len(shown) > 4 else "")


@pytest.fixture(scope="module")
def answers(prometheus: Prometheus) -> dict[Query, dict[str, float]]:
    """Of every query, once each has some and the load has left its mark; or as it is after half a minute."""
    asked, started_s = queries(), time.monotonic()
    while True:
        found = {query: prometheus.values(query.expr) for query in asked}
        passed_s = time.monotonic() - started_s
        if passed_s > 30 or (passed_s > 8 and all(found.values())):
            return found
        time.sleep(1)


def test_every_query_has_an_answer(answers: dict[Query, dict[str, float]], request: pytest.FixtureRequest) -> None:
    if file := request.config.getoption("--queries-table"):
        rows = [f"| {query.place} | `{query.expr}` | {said(values)} |" for query, values in answers.items()]
        Path(file).write_text("\n".join(["| where | query | value |", "|---|---|---|", *rows]) + "\n")
    assert [query for query, values in answers.items() if not values] == []


def test_values_are_those_of_the_load(answers: dict[Query, dict[str, float]]) -> None:
    by_place = {query.place: values for query, values in answers.items()}
    by_source = by_place["Slates by source and reason: {{source}} {{reason}}"]
    assert by_source["reason=deadline, source=popular"] > 0
    assert by_source["reason=history_unavailable, source=model"] == 0
    # One of each round's eight slates, give or take what was scraped within one.
    (popular,) = by_place["record oneslate:slates_popular:ratio_rate5m"].values()
    assert 0.05 < popular < 0.3
    assert by_place["Rows drained: {{kind}}"]["kind=event"] > 0
    # Those compared have five items each, of ranks 0 to 4, with logprobs of -log2(rank + 2).
    (shift,) = by_place["record oneslate:slate_score_shift_deviations:mean_rate30m"].values()
    (entropy,) = by_place["record oneslate:slate_beam_entropy_nats:mean_rate30m"].values()
    (coverage,) = by_place["record oneslate:catalog_shown:ratio"].values()
    assert shift == pytest.approx(-math.log2(2 * 3 * 4 * 5 * 6) / 5 / 2)
    assert 0 < entropy < math.log(4)
    assert 0 < coverage < 1
    assert sum(by_place["record oneslate:items_shown:ratio_rate30m"].values()) == pytest.approx(1)


def test_prometheus_evaluates_every_rule_and_none_fires(
    prometheus: Prometheus, answers: dict[Query, dict[str, float]]
) -> None:
    assert answers
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule.get("record") or rule["alert"] for rule in RULES}
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules} == {
        (rule["name"], "ok", "") for rule in rules
    }
    alerts = prometheus.get("alerts")["alerts"]
    assert [alert for alert in alerts if alert["state"] == "firing"] == []
    # A slate in eight is a popular one: five minutes of that would fire.
    assert "OneSlatePopularSlates" in {alert["labels"]["alertname"] for alert in alerts}
