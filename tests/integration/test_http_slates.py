"""Slates over HTTP: a real server, a real Redis, the fake runner."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live_http import fake_settings, live_client
from prometheus_client.parser import text_string_to_metric_families

from service.api.answers import HistoryAnswer, RecommendAnswer, VersionAnswer
from service.bundle import BundledCatalog, write_bundle, write_catalog
from service.domain import Item
from service.history.embedded import EmbeddedRedis
from service.inference.fake_runner import FakeRunner, fake_manifest
from service.inference.runner import Batch, Decoded
from service.settings import BatchSettings, FilterSettings, LimitSettings


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    filters = {"rare": FilterSettings(all_of=frozenset({"rare"}))}
    with (
        EmbeddedRedis(tmp_path_factory.mktemp("redis")) as redis_url,
        live_client(fake_settings(redis_url, filters=filters)) as client,
    ):
        yield client


def recommend(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 5, **body})
    assert answer.status_code == 200, answer.text
    RecommendAnswer.model_validate_json(answer.content)
    members: dict[str, Any] = answer.json()
    return members


def store(client: httpx.Client, user_id: str, *item_ids: str, action: str | None = None) -> None:
    events = [
        {
            "event_id": f"{user_id}-{item_id}-{action}",
            "user_id": user_id,
            "item_id": item_id,
            "timestamp": time.time() - 100 + place,
            **({"action": action} if action else {}),
        }
        for place, item_id in enumerate(item_ids)
    ]
    answer = client.post("/v1/events", json={"events": events})
    assert [result["status"] for result in answer.json()["results"]] == ["stored"] * len(events)


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_alternatives_are_the_next_best_slates_and_show_other_sets(client: httpx.Client) -> None:
    one = recommend(client, user_id="dora", slate_size=3)
    assert one["alternatives"] == []
    assert one["score"] == pytest.approx(sum(item["score"] for item in one["items"]))
    many = recommend(client, user_id="dora", slate_size=3, num_slates=4)
    assert many["items"] == one["items"]
    slates = [many, *many["alternatives"]]
    assert len({frozenset(ids(slate)) for slate in slates}) == len(slates) == 4
    assert [slate["score"] for slate in slates] == sorted((slate["score"] for slate in slates), reverse=True)
    assert all(len(set(ids(slate))) == 3 and slate["reward"] is None for slate in slates)
    few = recommend(client, user_id="dora", slate_size=3, num_slates=4, filter="rare", exclude=["item-0"])
    assert (len(few["items"]), few["alternatives"]) == (
        3,
        [],
    )  # nine items: the fake decoder has one slate of ten places


def test_a_request_may_name_its_beams(client: httpx.Client) -> None:
    version = client.get("/version").json()
    assert (version["beam_width"], version["max_beam_width"]) == (4, 16)
    assert recommend(client, user_id="dora")["beam_width"] == 4
    assert [recommend(client, user_id="dora", beam_width=width)["beam_width"] for width in (1, 7, 16)] == [1, 7, 16]
    many = recommend(client, user_id="dora", beam_width=2, num_slates=4)
    assert (many["beam_width"], len(many["alternatives"])) == (4, 3)
    refused = client.post("/v1/recommend", json={"user_id": "dora", "slate_size": 5, "beam_width": 17})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/beam_width")
    settings = fake_settings(limits=LimitSettings(beam_width=3))
    with live_client(settings) as narrow:
        assert narrow.get("/version").json()["max_beam_width"] == 3
        assert narrow.post("/v1/recommend", json={"user_id": "a", "slate_size": 5, "beam_width": 4}).status_code == 422
        assert recommend(narrow)["beam_width"] == 4


def test_pages_follow_each_other_without_repetition(client: httpx.Client) -> None:
    shown: set[str] = set()
    page: dict[str, Any] = {}
    for _ in range(4):
        asked = {"continue_from": page["recommendation_id"]} if page else {}
        page = recommend(client, user_id="ella", slate_size=10, **asked)
        assert page["reason"] == "cold_start"
        assert len(set(ids(page)) - shown) == 10
        shown |= set(ids(page))
    lost = recommend(client, user_id="ella", continue_from="0" * 32)
    assert (lost["reason"], lost["degraded"], len(lost["items"])) == ("unknown_continuation", True, 5)
    assert client.delete("/v1/users/ella/history").status_code == 204
    assert (
        recommend(client, user_id="ella", continue_from=page["recommendation_id"])["reason"] == "unknown_continuation"
    )


def test_a_service_may_keep_nothing_of_what_it_showed() -> None:
    settings = fake_settings()
    settings = settings.model_copy(update={"history": settings.history.model_copy(update={"shown_ttl_s": 0})})
    with live_client(settings) as client:
        assert recommend(client)["source"] == "model"
        answer = client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 5, "continue_from": "0" * 32})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/continue_from")


def test_where_the_bundle_says_so_the_reward_chooses_and_is_told() -> None:
    manifest = fake_manifest(slate_size=4, outputs=("item_rewards",), choice="reward")
    by_score = manifest.model_copy(update={"choice": "score"})
    with live_client(fake_settings(), runner=FakeRunner(manifest)) as client:
        answer = recommend(client, slate_size=4, num_slates=4)
    with live_client(fake_settings(), runner=FakeRunner(by_score)) as client:
        other = recommend(client, slate_size=4, num_slates=4)
    # The fake runner's rewards ascend where its scores descend.
    slates = [answer, *answer["alternatives"]]
    assert [slate["reward"] for slate in slates] == [18, 14, 10, 6]
    assert [ids(slate) for slate in slates] == [ids(slate) for slate in (other, *other["alternatives"])][::-1]
    assert other["reward"] == 6


def test_what_was_acknowledged_is_in_no_later_slate(client: httpx.Client) -> None:
    seen: set[str] = set()
    for _ in range(5):
        answer = recommend(client, user_id="bob", slate_size=10)
        assert answer["source"] == "model"
        assert len(set(ids(answer))) == 10
        assert not seen & set(ids(answer))
        store(client, "bob", *ids(answer))
        seen |= set(ids(answer))
    assert answer["reason"] is None


def test_equal_requests_have_equal_slates_and_new_ids(client: httpx.Client) -> None:
    first, second = recommend(client, user_id="carl"), recommend(client, user_id="carl")
    assert first["items"] == second["items"]
    assert first["recommendation_id"] != second["recommendation_id"]
    assert (first["reason"], first["degraded"]) == ("cold_start", False)
    assert set(first["took_ms"]) == {"history", "features", "queue", "inference", "total"}
    assert first["took_ms"]["total"] >= first["took_ms"]["history"] > 0


def test_a_history_in_the_request_may_come_in_any_order(client: httpx.Client) -> None:
    history = [
        {"item_id": "item-1", "timestamp": 1_700_000_000},
        {"item_id": "item-2", "timestamp": "2023-11-14T23:13:21+01:00", "action": "watch", "value": 12.5},
        {"item_id": "item-3", "timestamp": 1_700_000_002.5},
    ]
    forward = recommend(client, history=history)
    backward = recommend(client, history=history[::-1])
    assert forward["items"] == backward["items"]
    assert forward["reason"] is None
    assert not {"item-1", "item-2", "item-3"} & set(ids(forward))
    other = recommend(client, history=[*history[:2], {**history[2], "item_id": "item-4"}])
    assert other["items"] != forward["items"]


def test_filters_by_name_and_by_tags(client: httpx.Client) -> None:
    rare = {f"item-{number}" for number in range(0, 1000, 100)}
    assert set(ids(recommend(client, filter="rare", slate_size=10))) == rare
    few = recommend(client, filter="rare", slate_size=10, exclude=["item-0", "item-100"])
    assert set(ids(few)) == rare - {"item-0", "item-100"}
    assert (few["reason"], few["degraded"]) == ("too_few_items", False)
    odd = recommend(client, filter={"any_of": ["odd", "no such tag"], "none_of": ["rare"]})
    assert all(int(item_id.removeprefix("item-")) % 2 for item_id in ids(odd))
    nothing = recommend(client, filter={"all_of": ["odd", "even"]})
    assert (nothing["items"], nothing["reason"]) == ([], "too_few_items")


def test_no_group_has_more_items_than_the_cap_allows(client: httpx.Client) -> None:
    def groups(answer: dict[str, Any]) -> list[int]:
        return [int(item_id.removeprefix("item-")) % 7 for item_id in ids(answer)]

    free = recommend(client, slate_size=10)
    assert len(set(groups(free)[:7])) < 7
    capped = recommend(client, slate_size=7, max_per_group=1)
    assert (sorted(groups(capped)), capped["reason"]) == (list(range(7)), "cold_start")
    one = recommend(client, slate_size=10, max_per_group=1)
    assert sorted(groups(one)) == list(range(7))  # as many items as groups
    assert (one["reason"], one["degraded"], one["source"]) == ("too_few_items", False, "model")
    assert recommend(client, slate_size=10, max_per_group=10**12)["items"] == free["items"]


def test_a_slate_can_be_drawn_and_drawn_again(client: httpx.Client) -> None:
    fresh = [recommend(client, temperature=1) for _ in range(4)]
    assert len({answer["seed"] for answer in fresh}) == 4
    assert len({tuple(ids(answer)) for answer in fresh}) > 1
    assert all(0 < answer["propensity"] < 1 for answer in fresh)
    again = recommend(client, temperature=1, seed=fresh[0]["seed"])
    assert (again["items"], again["propensity"]) == (fresh[0]["items"], fresh[0]["propensity"])
    assert recommend(client, seed=fresh[0]["seed"])["items"] == fresh[0]["items"]
    with ThreadPoolExecutor(8) as pool:  # of both graphs, none in the other's batch
        bodies = [{"temperature": 1, "seed": 7} if number % 2 else {} for number in range(16)]
        answers = list(pool.map(lambda body: recommend(client, **body), bodies))
    assert {tuple(ids(answer)) for answer in answers[1::2]} == {tuple(ids(recommend(client, temperature=1, seed=7)))}
    assert {tuple(ids(answer)) for answer in answers[::2]} == {tuple(ids(recommend(client)))}
    assert all((answer["seed"], answer["propensity"]) == (None, None) for answer in answers[::2])


def test_a_bundle_without_a_sampler_says_so() -> None:
    manifest = fake_manifest()
    only = manifest.model_copy(update={"graphs": {"generator": manifest.graphs["generator"]}})
    with live_client(fake_settings(), runner=FakeRunner(only)) as client:
        for name in ("temperature", "seed"):
            refused = client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 3, name: 1})
            assert refused.status_code == 422
            assert refused.json()["errors"][0]["pointer"] == f"/{name}"
            assert "exported without the graph that draws slates" in refused.json()["errors"][0]["detail"]
        assert ids(client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 3}).json())


def test_a_history_can_be_read_and_forgotten(client: httpx.Client) -> None:
    user_id = "dora/ü %"
    path = f"/v1/users/{httpx.URL('http://x').copy_with(path='/' + user_id).raw_path.decode()[1:]}/history"
    assert client.get(path).json() == {"user_id": user_id, "events": [], "num_seen": 0}
    store(client, user_id, "item-7", "item-8", action="watch")
    answer = client.get(path)
    HistoryAnswer.model_validate_json(answer.content)
    assert [event["item_id"] for event in answer.json()["events"]] == ["item-7", "item-8"]
    assert answer.json()["events"][0]["action"] == "watch"
    assert answer.json()["num_seen"] == 2
    assert client.delete(path).status_code == 204
    assert client.get(path).json()["events"] == []
    assert client.delete(path).status_code == 204
    assert recommend(client, user_id=user_id)["reason"] == "cold_start"


def test_a_value_is_read_as_it_was_sent(client: httpx.Client) -> None:
    values = [18.2, 0.1, 99.1, 3, 1e-7, 123456.7]
    events = [
        {
            "event_id": str(value),
            "user_id": "eve",
            "item_id": "item-1",
            "action": "watch",
            "timestamp": at,
            "value": value,
        }
        for at, value in enumerate(values, start=int(time.time()) - 100)
    ]
    client.post("/v1/events", json={"events": events}).raise_for_status()
    assert [event["value"] for event in client.get("/v1/users/eve/history").json()["events"]] == values


def test_many_clients_at_once_get_what_each_would_get_alone(client: httpx.Client) -> None:
    for user in range(12):
        store(client, f"crowd-{user}", *(f"item-{user * 20 + place}" for place in range(user + 1)))
    alone = {user: recommend(client, user_id=f"crowd-{user}")["items"] for user in range(12)}
    with ThreadPoolExecutor(12) as pool:
        shared = list(pool.map(lambda n: (n % 12, recommend(client, user_id=f"crowd-{n % 12}")), range(240)))
    assert all(answer["items"] == alone[user] for user, answer in shared)


def test_metrics_agree_with_what_was_asked(client: httpx.Client) -> None:
    def slates() -> float:
        families = text_string_to_metric_families(client.get("/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "oneslate_http_requests_total"
            and sample.labels == {"method": "POST", "route": "/v1/recommend", "status": "200"}
        )

    before = slates()
    for _ in range(7):
        recommend(client, user_id="a user id that must not be a label")
    assert slates() - before == 7
    text = client.get("/metrics").text
    assert "must not be a label" not in text
    for name in (
        "oneslate_recommend_stage_seconds_bucket", "oneslate_batch_size_requests_sum", "oneslate_queue_depth_requests",
        "oneslate_slates_total", "oneslate_events_total", "oneslate_ready", "oneslate_build_info",
    ):  # fmt: skip
        assert f"\n{name}" in text


def test_operators_are_told_what_runs(client: httpx.Client) -> None:
    version = VersionAnswer.model_validate_json(client.get("/version").content)
    assert (version.provider, version.model_version, version.durability) == ("fake", "fake", "everysec")
    assert (version.slate_size, version.actions, version.filters) == (10, ["view", "watch"], ["rare"])
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "reasons": [], "degraded": []}
    assert "OneSlate API" in client.get("/docs").text


def test_request_ids_are_taken_when_sane_and_made_otherwise(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"X-Request-ID": "abc-123"}).headers["x-request-id"] == "abc-123"
    made = client.get("/livez", headers={"X-Request-ID": "no spaces, please"}).headers["x-request-id"]
    assert len(made) == 32
    assert client.get("/nowhere", headers={"X-Request-ID": "abc"}).json()["request_id"] == "abc"


def test_a_bundle_on_disk_is_served_by_the_fake_runner_too(tmp_path: Path) -> None:
    items = [Item(item_id=name, title=name.upper(), available=name != "c") for name in "abcd"]
    catalog = BundledCatalog(items, np.array([[3, 1], [0, 2], [0, 1], [2, 2]], np.int32), np.array([1, 9, 5, 3]))
    fields = fake_manifest(num_levels=2, slate_size=3, beam_width=2).model_dump(exclude={"files"})
    write_bundle(
        tmp_path / "bundle",
        fields | {"model_version": "m-1"},
        {
            "generator.onnx": Path.touch,
            "explain.onnx": Path.touch,
            "catalog.parquet": lambda file: write_catalog(file, catalog),
        },
    )
    with live_client(fake_settings(bundle=tmp_path / "bundle")) as client:
        answer = recommend(client, slate_size=3)
        assert answer["model_version"] == "m-1"
        assert sorted(ids(answer)) == ["a", "b", "d"]
        sids = {item["item_id"]: item["sid"] for item in answer["items"]}
        assert sids == {"a": [3, 1], "b": [0, 2], "d": [2, 2]}


class GatedRunner(FakeRunner):
    """Waits for the gate."""

    def __init__(self) -> None:
        super().__init__(fake_manifest())
        self.gate = threading.Event()
        self.gate.set()
        self.num_runs = 0

    def run(self, batch: Batch) -> Decoded:
        self.gate.wait(20)
        self.num_runs += 1
        return super().run(batch)


def test_a_slow_model_is_answered_popular_and_a_full_queue_is_not_admitted() -> None:
    runner = GatedRunner()
    settings = fake_settings(batch=BatchSettings(queue_limit=2, max_size=1))
    with live_client(settings, runner=runner) as client:
        runner.gate.clear()
        began_s = time.monotonic()
        late = recommend(client, deadline_ms=100, exclude=["item-0"])
        assert 0.09 < time.monotonic() - began_s < 2
        assert (late["source"], late["degraded"], late["reason"]) == ("popular", True, "deadline")
        assert ids(late) == [f"item-{number}" for number in range(1, 6)]
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(recommend, client) for _ in range(2)]
            time.sleep(0.3)
            refused = client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 5})
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["content-type"] == "application/problem+json"
            runner.gate.set()
            assert [one.result()["source"] for one in waiting] == ["model", "model"]


def test_nobody_works_for_a_client_that_has_gone() -> None:
    runner = GatedRunner()
    with live_client(fake_settings(batch=BatchSettings(max_size=1)), runner=runner) as client:
        runner.gate.clear()
        num_before = runner.num_runs
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(recommend, client)
            time.sleep(0.2)
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/recommend", json={"user_id": "gone", "slate_size": 5}, timeout=0.2)
            time.sleep(0.3)
            assert "oneslate_queue_depth_requests 0.0" in client.get("/metrics").text
            runner.gate.set()
            first.result()
        recommend(client)
        assert runner.num_runs - num_before == 2
        assert 'route="/v1/recommend",status="499"} 1.0' in client.get("/metrics").text
