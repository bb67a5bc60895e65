"""The live catalog over real HTTP: one replica, two of them over one Redis, restarts, and a Redis that goes away."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_http import fake_settings, live_client

from service.api.answers import CatalogAnswer, CatalogItemAnswer, ItemsAnswer, RollbackAnswer
from service.history.embedded import EmbeddedRedis
from service.inference.fake_runner import FakeRunner, fake_manifest
from service.settings import LimitSettings

FRESH = {"any_of": ["fresh"]}


@pytest.fixture(scope="module")
def memory() -> Iterator[httpx.Client]:
    with live_client(fake_settings(limits=LimitSettings(items=50))) as client:
        yield client


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path)
    yield server
    server.stop()


def change(client: httpx.Client, *items: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.post("/v1/items", json={"items": items})
    assert answer.status_code == 200, answer.text
    ItemsAnswer.model_validate_json(answer.content)
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def slate(client: httpx.Client, **body: Any) -> list[str]:
    answer = client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 10, **body})
    assert answer.status_code == 200, answer.text
    assert answer.json()["source"] == "model"
    return [item["item_id"] for item in answer.json()["items"]]


def soon(holds: Callable[[], bool], timeout_s: float = 20.0) -> float:
    """Waits until it holds; how long that took."""
    start_s = time.monotonic()
    while not holds():
        assert time.monotonic() - start_s < timeout_s, "it never came true"
        time.sleep(0.01)
    return time.monotonic() - start_s


def test_a_new_item_is_recommended_and_a_removed_one_is_not(memory: httpx.Client) -> None:
    answer = memory.put("/v1/items/new%2Fone", json={"title": "New one", "tags": ["fresh"], "embedding": [1.0] * 8})
    assert (answer.status_code, answer.json()["status"]) == (200, "added")
    soon(lambda: slate(memory, filter=FRESH) == ["new/one"])
    item = CatalogItemAnswer.model_validate_json(memory.get("/v1/items/new%2Fone").content)
    assert (item.title, item.tags, item.available, item.num_events) == ("New one", ["fresh"], True, 0)
    assert item.sid == answer.json()["sid"]
    # A history that holds it counts it as seen, as any other item.
    event = {"event_id": "e1", "user_id": "ann", "item_id": "new/one", "timestamp": time.time() - 5}
    assert memory.post("/v1/events", json={"events": [event]}).json()["results"][0]["status"] == "stored"
    assert slate(memory, filter=FRESH) == []
    assert slate(memory, filter=FRESH, exclude_seen=False) == ["new/one"]
    assert memory.delete("/v1/items/new%2Fone").status_code == 204
    soon(lambda: slate(memory, filter=FRESH, exclude_seen=False) == [])
    assert memory.get("/v1/items/new%2Fone").status_code == 404
    history = memory.get("/v1/users/ann/history").json()["events"]
    assert [one["item_id"] for one in history] == ["new/one"], "histories stay readable"
    # It comes back to the place that it had.
    again = memory.put("/v1/items/new%2Fone", json={"title": "New one", "tags": ["fresh"]}).json()
    assert (again["status"], again["sid"]) == ("changed", item.sid)
    soon(lambda: slate(memory, filter=FRESH, exclude_seen=False) == ["new/one"])
    memory.delete("/v1/items/new%2Fone")
    soon(lambda: slate(memory, filter=FRESH, exclude_seen=False) == [])


def test_an_item_of_the_bundle_changes_and_members_left_out_stay(memory: httpx.Client) -> None:
    before = memory.get("/v1/items/item-7").json()
    assert change(memory, {"item_id": "item-7", "available": False})[0]["status"] == "changed"
    soon(lambda: memory.get("/v1/items/item-7").json()["available"] is False)
    after = memory.get("/v1/items/item-7").json()
    assert after == {**before, "available": False, "catalog_version": after["catalog_version"]}
    assert after["catalog_version"].startswith(before["catalog_version"][:12])
    change(memory, {"item_id": "item-7", "available": True, "tags": ["seven"], "group": ""})
    soon(lambda: slate(memory, filter={"all_of": ["seven"]}) == ["item-7"])
    change(memory, {"item_id": "item-7", "available": False})
    soon(lambda: slate(memory, filter={"all_of": ["seven"]}) == [])
    change(memory, {"item_id": "item-7", "available": True})
    soon(lambda: slate(memory, filter={"all_of": ["seven"]}) == ["item-7"])
    memory.put("/v1/items/item-7", json={"tags": ["odd"]})
    soon(lambda: memory.get("/v1/items/item-7").json()["title"] == "")
    assert slate(memory, filter={"all_of": ["seven"]}) == []


def test_each_change_of_a_bulk_stands_for_itself(memory: httpx.Client) -> None:
    results = change(
        memory,
        {"item_id": "bulk-a", "title": "a", "tags": ["bulk"]},
        {"item_id": "nobody", "available": False},
        {"item_id": "bulk-a", "title": "b"},
        {"item_id": "nobody", "removed": True},
        {"item_id": "bulk-b", "embedding": [1.0, 2.0]},
        {"item_id": "item-3", "removed": True},
        {"item_id": "bulk-a", "removed": True},
        {"item_id": "bulk-a", "removed": False, "title": "c"},
    )
    assert [result["status"] for result in results] == [
        "added", "refused", "changed", "refused", "refused", "removed", "removed", "changed",
    ]  # fmt: skip
    kinds = [result["problem"]["type"].rpartition(":")[2] for result in results if result["status"] == "refused"]
    assert kinds == ["unknown-item", "unknown-item", "refused-item"]
    assert "8 values, not 2" in results[4]["problem"]["detail"]
    assert results[4]["problem"]["errors"][0]["pointer"] == "/items/4"
    assert results[0]["sid"] == results[2]["sid"] is not None
    soon(lambda: slate(memory, filter={"any_of": ["bulk"]}) == ["bulk-a"])
    assert memory.get("/v1/items/bulk-a").json()["title"] == "c"
    assert memory.get("/v1/items/item-3").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/v1/items/x", {}, 409),
        ("PUT", "/v1/items/x", {"title": "t", "surprise": 1}, 422),
        ("PUT", "/v1/items/x", {"title": "t", "embedding": [1.0] * 7}, 409),
        ("PUT", "/v1/items/x/similar", {"title": "t"}, 405),
        ("PUT", "/v1/items/x", {"title": 3}, 422),
        ("PUT", "/v1/items/x%0ay", {"title": "t"}, 422),
        ("PUT", "/v1/items/" + "x" * 257, {"title": "t"}, 422),
        ("GET", "/v1/items/nobody", None, 404),
        ("POST", "/v1/items", {"items": []}, 422),
        ("POST", "/v1/items", {"items": [{"item_id": "x", "title": "t"}] * 51}, 422),
        ("POST", "/v1/items", {"items": [{"title": "t"}]}, 422),
    ],
)
def test_what_cannot_be_is_a_problem(
    memory: httpx.Client, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    answer = memory.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_what_was_changed_here_is_read_here_at_once(memory: httpx.Client) -> None:
    for number in range(5):
        assert memory.put("/v1/items/at%20once", json={"title": f"t{number}"}).status_code == 200
        assert memory.get("/v1/items/at%20once").json()["title"] == f"t{number}"
        assert memory.delete("/v1/items/at%20once").status_code == 204
        assert memory.get("/v1/items/at%20once").status_code == 404
    assert memory.delete("/v1/items/never%20there").status_code == 204


def test_metrics_tell_what_happened(memory: httpx.Client) -> None:
    change(memory, {"item_id": "counted", "title": "t"}, {"item_id": "nobody", "available": True})
    soon(lambda: memory.get("/v1/items/counted").status_code == 200)
    text = memory.get("/metrics").text
    for line in (
        'oneslate_item_changes_total{outcome="added"}', 'oneslate_item_changes_total{outcome="refused"}',
        "oneslate_catalog_changes_applied_total", "oneslate_catalog_merge_seconds_count",
        "oneslate_catalog_visible_seconds_count", "oneslate_catalog_followed_timestamp_seconds",
    ):  # fmt: skip
        [value] = [float(one.rpartition(" ")[2]) for one in text.splitlines() if one.startswith(line)]
        assert value > 0, line
    [items] = [one for one in text.splitlines() if one.startswith("oneslate_catalog_items ")]
    assert float(items.split()[1]) > 1000


def test_replicas_follow_each_other_and_a_restart_remembers(redis: EmbeddedRedis) -> None:
    url = redis.start()
    with live_client(fake_settings(url)) as here, live_client(fake_settings(url)) as there:
        change(here, {"item_id": "shared", "title": "t", "tags": ["fresh"]})
        assert soon(lambda: slate(there, filter=FRESH) == ["shared"]) < 2.0
        # Known over there at once, seen there or not: what comes in is put in order by the log.
        change(there, {"item_id": "other", "title": "o", "tags": ["fresh"]})
        assert change(here, {"item_id": "other", "available": False})[0]["status"] == "changed"
        change(here, {"item_id": "item-5", "removed": True})
        soon(lambda: there.get("/v1/items/item-5").status_code == 404)
        soon(lambda: there.get("/v1/items/other").json().get("available") is False)
        versions: list[str] = []

        def agree() -> bool:
            versions[:] = [client.get("/version").json()["catalog_version"] for client in (here, there)]
            return versions[0] == versions[1]

        soon(agree)
        place = there.get("/v1/items/shared").json()["sid"]
    with live_client(fake_settings(url)) as back:
        assert back.get("/version").json()["catalog_version"] == versions[0]
        assert back.get("/v1/items/item-5").status_code == 404
        assert back.get("/v1/items/shared").json()["sid"] == place
        assert slate(back, filter=FRESH) == ["shared"]


def test_an_event_on_an_item_that_another_replica_has_just_added_is_stored(redis: EmbeddedRedis) -> None:
    settings = fake_settings(redis.start())
    with live_client(settings) as here, live_client(settings) as there:
        for number in range(5):
            assert here.put(f"/v1/items/new-{number}", json={"title": "New", "embedding": [1.0] * 8}).status_code == 200
            event = {"event_id": f"e{number}", "user_id": "ann", "item_id": f"new-{number}", "timestamp": time.time()}
            [result] = there.post("/v1/events", json={"events": [event]}).json()["results"]
            assert result["status"] == "stored"


def test_a_wrong_bulk_is_taken_back_on_every_replica(redis: EmbeddedRedis) -> None:
    url = redis.start()
    with live_client(fake_settings(url)) as here, live_client(fake_settings(url)) as there:
        change(here, {"item_id": "good", "title": "good", "tags": ["fresh"]})
        soon(lambda: slate(there, filter=FRESH) == ["good"])
        listed = CatalogAnswer.model_validate_json(there.get("/v1/catalog").content)
        assert (listed.num_items, listed.num_shown, len(listed.versions)) == (1001, 1001, 1)
        right = listed.versions[0].catalog_version
        wrong = [{"item_id": f"item-{number}", "removed": True, "tags": []} for number in range(40)]
        change(
            here, *wrong, {"item_id": "good", "tags": ["spoiled"]}, {"item_id": "bad", "title": "b", "tags": ["fresh"]}
        )
        soon(lambda: slate(there, filter=FRESH) == ["bad"])
        soon(lambda: there.get("/v1/catalog").json()["num_shown"] == 962)
        answer = there.post("/v1/catalog/rollback", json={"catalog_version": right})
        assert answer.status_code == 200, answer.text
        assert RollbackAnswer.model_validate_json(answer.content).num_changes == 42
        assert slate(there, filter=FRESH) == ["good"], "at once, where it was asked for"
        soon(lambda: slate(here, filter=FRESH) == ["good"])
        assert here.get("/v1/items/item-7").json()["tags"] == there.get("/v1/items/item-7").json()["tags"] != []
        assert here.get("/v1/items/bad").status_code == 404
        versions = here.get("/v1/catalog?limit=3").json()["versions"]
        # Of a bulk what is new comes first, by itself.
        assert [version["num_changes"] for version in versions] == [42, 41, 1]
        assert versions[0]["catalog_version"] == answer.json()["catalog_version"]
        # The rollback itself is undone in the same way; and the bundle's own items are always there.
        assert (
            here.post("/v1/catalog/rollback", json={"catalog_version": versions[1]["catalog_version"]}).status_code
            == 200
        )
        soon(lambda: slate(there, filter=FRESH) == ["bad"])
        here.post("/v1/catalog/rollback", json={"catalog_version": listed.bundle_version})
        soon(lambda: there.get("/v1/catalog").json()["num_shown"] == 1000)
        assert slate(there, filter=FRESH) == []
    with live_client(fake_settings(url)) as back:
        assert back.get("/v1/catalog").json()["num_shown"] == 1000


@pytest.mark.parametrize(
    ("version", "status", "why"),
    [
        ("nonsense", 409, "is none of this bundle's"),
        ("{base}.x", 409, "is none of this bundle's"),
        ("other.1-0", 409, "is none of this bundle's"),
        ("{base}.999999-0", 409, "does not hold what came since"),
        ("", 422, "at least 1 character"),
        (None, 422, "valid string"),
    ],
)
def test_a_version_that_is_not_there_is_a_problem(
    memory: httpx.Client, version: str | None, status: int, why: str
) -> None:
    listed = memory.get("/v1/catalog").json()
    asked = None if version is None else version.format(base=listed["bundle_version"])
    answer = memory.post("/v1/catalog/rollback", json={"catalog_version": asked})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert why in answer.text
    assert answer.json()["errors"][0]["pointer"] == "/catalog_version"
    assert memory.get("/v1/catalog").json() == listed


def test_two_replicas_never_give_one_place_to_two_items(redis: EmbeddedRedis) -> None:
    url = redis.start()
    with live_client(fake_settings(url)) as here, live_client(fake_settings(url)) as there:
        answers: dict[str, dict[str, Any]] = {}

        def add(client: httpx.Client, name: str) -> None:
            # The same embedding for all: everybody wants the same place.
            for number in range(40):
                [result] = change(client, {"item_id": f"{name}-{number}", "embedding": [1.0] * 8, "tags": ["fresh"]})
                answers[f"{name}-{number}"] = result

        threads = [threading.Thread(target=add, args=one) for one in ((here, "h"), (there, "t"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [result["status"] for result in answers.values()] == ["added"] * 80
        assert len({tuple(result["sid"]) for result in answers.values()}) == 80
        for client in (here, there):
            soon(lambda client=client: client.get("/version").json()["num_items"] == 1080)  # type: ignore[misc]
            for item_id, result in answers.items():
                assert client.get(f"/v1/items/{item_id}").json()["sid"] == result["sid"]


def test_slates_are_whole_while_the_catalog_changes(redis: EmbeddedRedis) -> None:
    """Every slate belongs to one snapshot: nothing that is gone for good, nothing twice, and always enough."""
    with live_client(fake_settings(redis.start())) as client:
        gone = [f"item-{number}" for number in range(0, 200, 2)]
        stop = threading.Event()
        seen_after_gone: list[str] = []
        removed: set[str] = set()

        def watch() -> None:
            while not stop.is_set():
                before = set(removed)
                items = slate(client)
                assert len(items) == len(set(items)) == 10
                seen_after_gone.extend(before & set(items))

        watcher = threading.Thread(target=watch)
        watcher.start()
        for start in range(0, len(gone), 10):
            some = gone[start : start + 10]
            change(client, *({"item_id": item_id, "removed": True} for item_id in some))
            change(client, *({"item_id": f"new-{item_id}", "title": "t"} for item_id in some))
            soon(lambda some=some: all(client.get(f"/v1/items/{one}").status_code == 404 for one in some))  # type: ignore[misc]
            removed.update(some)
        time.sleep(0.3)
        stop.set()
        watcher.join()
        assert seen_after_gone == []
        assert client.get("/version").json()["num_items"] == 1100


def test_without_redis_changes_are_refused_and_come_back_with_it(redis: EmbeddedRedis) -> None:
    url = redis.start()
    settings = fake_settings(url)
    with live_client(settings) as client:
        change(client, {"item_id": "kept", "title": "t", "tags": ["fresh"]})
        soon(lambda: slate(client, filter=FRESH) == ["kept"])
        redis.stop()
        answer = client.put("/v1/items/lost", json={"title": "t"})
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:oneslate:problem:catalog-unavailable")
        assert "127.0.0.1" not in answer.text
        assert "sock" not in answer.text
        body = {"user_id": "ann", "slate_size": 1, "filter": FRESH}
        assert client.post("/v1/recommend", json=body).json()["items"][0]["item_id"] == "kept"
        redis.start()
        soon(lambda: client.put("/v1/items/later", json={"title": "t"}).status_code == 200)
        soon(lambda: client.get("/v1/items/later").status_code == 200)
        assert client.get("/v1/items/lost").status_code == 404


def test_a_service_that_starts_without_redis_catches_up(redis: EmbeddedRedis) -> None:
    url = redis.start()
    with live_client(fake_settings(url)) as client:
        change(client, {"item_id": "item-5", "removed": True})
    redis.stop()
    with live_client(fake_settings(url)) as client:
        assert client.get("/v1/items/item-5").status_code == 200, "the bundle's own items until the log is there"
        redis.start()
        soon(lambda: client.get("/v1/items/item-5").status_code == 404)


def test_another_model_finds_places_of_its_own(redis: EmbeddedRedis) -> None:
    url = redis.start()
    another = FakeRunner(fake_manifest().model_copy(update={"model_version": "another"}))
    with live_client(fake_settings(url)) as old:
        change(old, {"item_id": "before", "title": "b", "tags": ["fresh"], "embedding": [1.0, -1.0] * 4})
        change(old, {"item_id": "dropped", "title": "d", "tags": ["fresh"]}, {"item_id": "dropped", "removed": True})
        with live_client(fake_settings(url), runner=another) as new:
            soon(lambda: slate(new, filter=FRESH) == ["before"])
            change(old, {"item_id": "meanwhile", "title": "m", "tags": ["fresh"]})
            soon(lambda: sorted(slate(new, filter=FRESH)) == ["before", "meanwhile"])
            assert change(new, {"item_id": "before", "available": False})[0]["status"] == "changed"
            soon(lambda: slate(old, filter=FRESH) == ["meanwhile"])
