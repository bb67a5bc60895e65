"""The locustfile against a live service with a real Redis: what it counts, and what it calls a failure."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtests.bench.live_service import LiveService, live_service
from service.history.embedded import EmbeddedRedis

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "ONESLATE_RUNNER": "fake",
    "ONESLATE_LOG_LEVEL": "warning",
    # Two busy cores must not make requests fail here.
    "ONESLATE_HISTORY__CONNECT_TIMEOUT_MS": "5000",
    "ONESLATE_HISTORY__READ_TIMEOUT_MS": "5000",
    "ONESLATE_DEADLINE_MS": "5000",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with (
        EmbeddedRedis(tmp_path_factory.mktemp("redis")) as url,
        live_service(SETTINGS | {"ONESLATE_HISTORY__URL": url}) as live,
    ):
        yield live


def locust(service: LiveService, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py"), "--headless", "--json"),
        *("--users", "10", "--spawn-rate", "10", "--host", service.url),
        *options,
    ]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=120)


def counted_by_locust(done: subprocess.CompletedProcess[str], field: str = "num_requests") -> Counter[tuple[str, str]]:
    return Counter({(entry["method"], entry["name"]): entry[field] for entry in json.loads(done.stdout)})


def counted_by_service(service: LiveService, name: str) -> dict[tuple[str, ...], int]:
    text = httpx.get(f"{service.url}/metrics").text
    return {
        tuple(sample.labels.values()): int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def requests_of(service: LiveService) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    text = httpx.get(f"{service.url}/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "oneslate_http_requests_total":
                counts[sample.labels["method"], sample.labels["route"]] += int(sample.value)
    # The waiting for the service, and these very reads.
    return Counter({key: count for key, count in counts.items() if key[1] not in {"/readyz", "/metrics"}})


def test_locust_and_the_service_count_the_same(service: LiveService, tmp_path: Path) -> None:
    before = requests_of(service)
    done = locust(service, tmp_path, "--run-time", "6s", "--population", "200")
    assert done.returncode == 0, done.stdout + done.stderr
    counted = counted_by_locust(done)
    assert {name for _, name in counted} == {"/v1/recommend", "/v1/events", "/v1/users/{user_id}/history", "/version"}
    assert min(counted.values()) >= 10
    assert requests_of(service) - before == counted
    assert sum(counted_by_service(service, "oneslate_slates_total").values()) == counted["POST", "/v1/recommend"]
    assert counted_by_service(service, "oneslate_events_total")["stored",] == counted["POST", "/v1/events"]
    assert counted_by_locust(done, "num_failures").total() == 0


def test_users_come_by_zipf_and_items_from_the_file(service: LiveService, tmp_path: Path) -> None:
    items = tmp_path / "items.txt"
    items.write_text("item-7\nitem-8\n")
    options = ("--run-time", "4s", "--population", "50", "--zipf", "2", "--items", str(items), "--pause", "0.02")
    done = locust(service, tmp_path, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    lengths = [
        len([event for event in history(service, f"visitor-{rank}") if event["item_id"] in {"item-7", "item-8"}])
        for rank in (0, 40)
    ]
    # 62 % of all requests are the first user's, one in 2,700 the forty-first's.
    assert lengths[0] > 10 * max(1, lengths[1])


def history(service: LiveService, user_id: str) -> list[dict[str, object]]:
    answer = httpx.get(f"{service.url}/v1/users/{user_id}/history")
    events: list[dict[str, object]] = json.loads(answer.raise_for_status().text)["events"]
    return events


def test_a_problem_is_a_failure_by_its_type(tmp_path: Path) -> None:
    nowhere = {"ONESLATE_HISTORY__URL": "redis://127.0.0.1:1", "ONESLATE_HISTORY__CONNECT_TIMEOUT_MS": "50"}
    with live_service(SETTINGS | nowhere) as broken:
        done = locust(broken, tmp_path, "--run-time", "3s")
    assert done.returncode == 1
    assert "503 urn:oneslate:problem:history-unavailable" in done.stdout + done.stderr
    failed = counted_by_locust(done, "num_failures")
    assert failed["POST", "/v1/events"] == counted_by_locust(done)["POST", "/v1/events"]
    # A degraded slate is still a slate.
    assert failed["POST", "/v1/recommend"] == 0
