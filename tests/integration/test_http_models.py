"""Models that come and go over real HTTP and a real Redis: activation, canary, rollback, refusals, two replicas."""

import gc
import json
import re
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from live_http import fake_settings, live_client
from model_bundles import write_model

from service.history.embedded import EmbeddedRedis
from service.inference.fake_runner import FakeRunner


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for version in ("one", "two"):
        write_model(folder, version)
    return folder


@pytest.fixture
def models_dir(shelf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shelf, tmp_path / "models"))


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with EmbeddedRedis(tmp_path / "redis") as url:
        yield url


@contextmanager
def replica(url: str, models_dir: Path) -> Iterator[httpx.Client]:
    with live_client(fake_settings(url, bundle=models_dir / "one", models_dir=models_dir)) as client:
        yield client


def activate(client: httpx.Client, version: str, **body: Any) -> httpx.Response:
    return client.post(f"/v1/models/{version}/activate", json=body, timeout=120)


def recommend(client: httpx.Client, user_id: str = "ann", **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json={"user_id": user_id, "slate_size": 4, **body})
    assert answer.status_code == 200, answer.text
    members: dict[str, Any] = answer.json()
    owners = {item["item_id"].split(":")[0] for item in members["items"]}
    assert owners == {members["model_version"]}, "items of another model"
    return members


def until(holds: Any, seconds: float = 30) -> None:
    end_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_a_model_is_activated_tried_and_taken_back(redis_url: str, models_dir: Path) -> None:
    with replica(redis_url, models_dir) as client:
        listed = client.get("/v1/models").json()
        assert [model["model_version"] for model in listed["models"]] == ["one", "two"]
        assert (listed["active"], listed["canary"], listed["previous"], listed["serving"]) == ("one", None, [], ["one"])
        assert recommend(client, slate_size=6)["model_version"] == "one"
        answer = activate(client, "two")
        assert (answer.status_code, answer.json()["active"], answer.json()["previous"]) == (200, "two", ["one"])
        assert recommend(client)["model_version"] == "two"
        assert client.get("/version").json()["model_version"] == "two"
        assert 'model_version="two"' in client.get("/metrics").text
        assert 'model_version="one"' not in client.get("/metrics").text
        # Of the active model alone: the other one's slate is not among them.
        assert "\noneslate_catalog_shown_items 4.0\n" in client.get("/metrics").text
        assert "\noneslate_catalog_available_items 60.0\n" in client.get("/metrics").text
        assert activate(client, "one", share=0.5).json()["canary"] == "one"
        answered = [recommend(client, f"user-{number}")["model_version"] for number in range(40)]
        assert {*answered} == {"one", "two"}
        assert answered == [recommend(client, f"user-{number}")["model_version"] for number in range(40)]
        for version in ("one", "two"):  # to compare them
            assert recommend(client, model_version=version)["model_version"] == version
        refused = client.post("/v1/recommend", json={"user_id": "a", "slate_size": 1, "model_version": "three"})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/model_version")
        assert client.post("/v1/models/rollback", json={}).json()["canary"] is None
        assert client.post("/v1/models/rollback", json={}).json()["active"] == "one"
        assert recommend(client)["model_version"] == "one"
        nothing = client.post("/v1/models/rollback", json={})
        assert (nothing.status_code, nothing.json()["type"]) == (409, "urn:oneslate:problem:no-earlier-model")
    with replica(redis_url, models_dir) as client:  # a restart begins with what was active
        activate(client, "two")
    with replica(redis_url, models_dir) as client:
        assert recommend(client)["model_version"] == "two"
        # Gauges tell of its catalog, though it is none that the settings name.
        [followed_s], [num_items] = (
            re.findall(rf"^oneslate_catalog_{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
            for name in ("followed_timestamp_seconds", "items")
        )
        assert abs(time.time() - float(followed_s)) < 60
        assert float(num_items) > 0


def test_a_rollback_names_what_it_leaves_and_is_no_form(redis_url: str, models_dir: Path) -> None:
    with replica(redis_url, models_dir) as client:
        activate(client, "two")
        for _ in range(2):  # asked again, it does nothing more
            left = client.post("/v1/models/rollback", json={"model_version": "two"})
            assert (left.status_code, left.json()["active"], left.json()["previous"]) == (200, "one", [])
        # What a page of another site can send without asking.
        forged = client.post("/v1/models/rollback", content="", headers={"Content-Type": "text/plain"})
        assert forged.status_code == 415
        tried = activate(client, "one", share=0.5)
        assert (tried.status_code, tried.json()["errors"][0]["pointer"]) == (422, "/share")


def test_what_users_of_a_canary_do_is_stored(redis_url: str, models_dir: Path) -> None:
    with replica(redis_url, models_dir) as client:
        activate(client, "two", share=0.5)
        events = [
            {"event_id": version, "user_id": "ann", "item_id": f"{version}:item-3", "timestamp": time.time()}
            for version in ("one", "two", "three")
        ]
        results = client.post("/v1/events", json={"events": events}).json()["results"]
        assert [result["status"] for result in results] == ["stored", "stored", "refused"]
        history = client.get("/v1/users/ann/history").json()["events"]
        assert [event["item_id"] for event in history] == ["one:item-3", "two:item-3"]
        for version in ("one", "two"):
            assert client.get(f"/v1/items/{version}:item-3").status_code == 200
            assert client.get(f"/v1/items/{version}:item-3/similar").status_code == 200


def test_a_start_with_a_damaged_active_model_serves_the_settings_own(redis_url: str, models_dir: Path) -> None:
    with replica(redis_url, models_dir) as client:
        activate(client, "two")
    (models_dir / "two" / "generator.onnx").write_bytes(b"twp")
    with replica(redis_url, models_dir) as client:
        assert recommend(client)["model_version"] == "one"
        assert client.get("/readyz").json() == {"status": "ready", "reasons": [], "degraded": ["model_not_loaded"]}


def test_histories_outlive_a_switch(redis_url: str, models_dir: Path) -> None:
    with replica(redis_url, models_dir) as client:
        event = {"event_id": "1", "user_id": "ann", "item_id": "one:item-1", "timestamp": time.time()}
        assert client.post("/v1/events", json={"events": [event]}).json()["results"][0]["status"] == "stored"
        activate(client, "two")
        assert len(client.get("/v1/users/ann/history").json()["events"]) == 1
        assert recommend(client)["reason"] is None


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: (path / "generator.onnx").write_bytes(b"twp"), "sha256"),
        (lambda path: (path / "generator.onnx").unlink(), "missing"),
        (
            lambda path: (path / "manifest.json").write_text(
                json.dumps(json.loads((path / "manifest.json").read_text()) | {"beam_width": 0})
            ),
            "beam_width",
        ),
        (
            lambda path: (path / "manifest.json").write_text(
                json.dumps(json.loads((path / "manifest.json").read_text()) | {"format_version": 3})
            ),
            "format_version",
        ),
        (
            lambda path: (path / "manifest.json").write_text(
                json.dumps(json.loads((path / "manifest.json").read_text()) | {"seed": 7})
            ),
            "was changed after it was written",
        ),
    ],
)
def test_a_damaged_bundle_is_refused_by_name_and_the_old_one_serves(
    redis_url: str, models_dir: Path, damage: Any, complaint: str
) -> None:
    damage(models_dir / "two")
    with replica(redis_url, models_dir) as client:
        refused = activate(client, "two")
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:oneslate:problem:refused-model")
        assert complaint in refused.json()["detail"]
        assert recommend(client)["model_version"] == "one"
        assert client.get("/v1/models").json()["active"] == "one"
        assert "oneslate_model_errors_total 1.0" in client.get("/metrics").text
        unknown = activate(client, "three")
        assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:oneslate:problem:unknown-model")


def test_replicas_follow_each_other(redis_url: str, models_dir: Path) -> None:
    with replica(redis_url, models_dir) as here, replica(redis_url, models_dir) as there:
        activate(here, "two")
        until(lambda: recommend(there)["model_version"] == "two")
        assert there.post("/v1/models/rollback", json={}).status_code == 200
        until(lambda: recommend(here)["model_version"] == "one")


def sent(client: httpx.Client, *item_ids: str, user_id: str = "ann", of: str | None = None) -> list[str]:
    """What becomes of events on these items, of a slate."""
    events = [
        {"event_id": uuid4().hex, "user_id": user_id, "item_id": item_id, "timestamp": time.time()}
        for item_id in item_ids
    ]
    if of is not None:
        events = [{**event, "recommendation_id": of} for event in events]
    answer = client.post("/v1/events", json={"events": events})
    return [result["status"] for result in answer.json()["results"]]


def test_what_was_shown_by_a_model_that_is_not_in_service_here_is_no_unknown_item(
    redis_url: str, models_dir: Path, tmp_path: Path
) -> None:
    fewer = Path(shutil.copytree(models_dir / "one", tmp_path / "fewer" / "one")).parent
    with replica(redis_url, models_dir) as here, replica(redis_url, fewer) as there:
        assert sent(there, "two:item-3") == ["refused"]
        activate(here, "two")
        slate = recommend(here)
        shown, of = [item["item_id"] for item in slate["items"]], slate["recommendation_id"]
        until(lambda: there.get("/readyz").json()["degraded"] == ["model_not_loaded"])
        assert sent(there, shown[0]) == ["stored"], "it cannot know what others show"
        assert here.post("/v1/models/rollback", json={}).status_code == 200
        until(lambda: there.get("/readyz").json()["degraded"] == [])
        for replica_of_one in (here, there):
            assert sent(replica_of_one, shown[1], "two:no such item", of=of) == ["stored", "refused"]
            assert sent(replica_of_one, shown[1]) == ["refused"], "nothing says that it was shown"
            assert sent(replica_of_one, shown[1], of="0" * 32) == ["refused"]
            assert sent(replica_of_one, shown[1], user_id="bob", of=of) == ["refused"]
        assert recommend(here)["source"] == "model"


def test_a_replica_that_lacks_a_model_says_so(redis_url: str, models_dir: Path, shelf: Path, tmp_path: Path) -> None:
    fewer = Path(shutil.copytree(models_dir / "one", tmp_path / "fewer" / "one")).parent
    with replica(redis_url, models_dir) as here, replica(redis_url, fewer) as there:
        activate(here, "two")
        until(lambda: there.get("/readyz").json()["degraded"] == ["model_not_loaded"])
        assert recommend(there)["model_version"] == "one"
        shutil.copytree(shelf / "two", fewer / ".two")
        (fewer / ".two").rename(fewer / "two")
        until(lambda: recommend(there)["model_version"] == "two")
        assert there.get("/readyz").json()["degraded"] == []


def test_switches_under_load_fail_nobody_and_mix_nothing(redis_url: str, models_dir: Path) -> None:
    """Whatever the moment, each answer is one model's: `recommend` looks at every item."""
    stop = threading.Event()
    with replica(redis_url, models_dir) as client:

        def visit(number: int) -> int:
            count = 0
            with httpx.Client(base_url=client.base_url, timeout=30) as own:
                while not stop.is_set():
                    answer = recommend(own, f"user-{number}-{count}")
                    assert (answer["source"], answer["reason"]) == ("model", "cold_start")
                    count += 1
            return count

        with ThreadPoolExecutor(4) as pool:
            visitors = [pool.submit(visit, number) for number in range(4)]
            try:
                for _ in range(4):
                    assert activate(client, "two").status_code == 200
                    assert client.post("/v1/models/rollback", json={}).status_code == 200
            finally:
                stop.set()
            assert sum(visitor.result() for visitor in visitors) > 20


def test_without_redis_there_is_no_registry(models_dir: Path) -> None:
    from starlette.testclient import TestClient

    from service.app import create_app

    app = create_app(fake_settings(bundle=models_dir / "one", models_dir=models_dir))
    with pytest.raises(ValueError, match="ONESLATE_MODELS_DIR needs a Redis"), TestClient(app):
        pass


def test_a_service_of_one_bundle_says_which_and_activates_none(models_dir: Path) -> None:
    with live_client(fake_settings(bundle=models_dir / "one")) as client:
        listed = client.get("/v1/models").json()
        assert (listed["active"], [model["model_version"] for model in listed["models"]]) == ("one", ["one"])
        refused = activate(client, "two")
        assert (refused.status_code, refused.json()["type"]) == (404, "urn:oneslate:problem:unknown-model")
        assert "ONESLATE_MODELS_DIR" in refused.json()["detail"]


def test_a_model_that_is_let_go_is_gone_though_nobody_collects(redis_url: str, models_dir: Path) -> None:
    """What was there at the start is frozen: nothing but the last reference frees it."""
    gc.collect()
    gc.disable()
    try:
        with replica(redis_url, models_dir) as client:
            client.get("/openapi.json")
            recommend(client)
            [first] = [one for one in gc.get_objects() if type(one) is FakeRunner]
            gone = weakref.ref(first)
            del first
            activate(client, "two")
            assert recommend(client)["model_version"] == "two"
            until(lambda: gone() is None)
    finally:
        gc.enable()
