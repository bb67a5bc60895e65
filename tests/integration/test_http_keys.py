"""With keys on: who is let in, whose data they reach, and how often, over real HTTP."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_http import fake_settings, live_client

from service.app import create_app
from service.history import MemoryHistoryStore
from service.keys import SCOPES, ApiKey, digest, write_keys
from service.settings import Settings

OPEN = {"/livez", "/readyz", "/metrics", "/version"}
"""What probes and Prometheus ask has no key: it names no user and no item."""


def key(name: str, *scopes: str, **fields: Any) -> ApiKey:
    return ApiKey(name=name, sha256=digest(f"token of {name}"), scopes=scopes, **fields)  # type: ignore[arg-type]


KEYS = [
    *(key(scope, scope) for scope in SCOPES),
    key("all", *SCOPES),
    key("ann", "recommend", "events", user_id="ann"),
    key("slow", "recommend", requests_per_s=0.5, burst=3),
]


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer token of {name}"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    write_keys(path, KEYS)
    return path


@pytest.fixture
def client(keys_file: Path) -> Iterator[httpx.Client]:
    with live_client(fake_settings(keys_file=keys_file), history=MemoryHistoryStore()) as client:
        yield client


def problem(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    code: str = answer.json()["type"].rsplit(":", 1)[1]
    return code


def operations(client: httpx.Client) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def call(client: httpx.Client, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    url = re.sub(r"{\w+}", "something", path)
    # A body that nobody reads when the key is refused; what is let in may refuse it.
    return client.request(method, url, headers={"Content-Type": "application/json", **headers}, content=b"{}")


def test_every_operation_asks_for_a_key_with_its_scope(client: httpx.Client) -> None:
    asked = {}
    for method, path, operation in operations(client):
        if path in OPEN:
            assert "security" not in operation
            assert call(client, method, path, {}).status_code == 200
            continue
        assert operation["security"] == [{"key": []}]
        [scope] = re.findall(r"scope `(\w+)`", operation["responses"]["403"]["description"])
        asked[f"{method} {path}"] = scope
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic token of all"}):
            refused = call(client, method, path, headers)
            assert (refused.status_code, problem(refused)) == (401, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
        for other in SCOPES:
            answer = call(client, method, path, bearer(other))
            if other == scope:
                assert answer.status_code not in {401, 403}
            else:
                assert (answer.status_code, problem(answer)) == (403, "forbidden")
                assert scope in answer.json()["detail"]
    assert asked == {
        "post /v1/recommend": "recommend",
        "post /v1/recommend/batch": "recommend",
        "get /v1/items/{item_id}": "recommend",
        "get /v1/items/{item_id}/similar": "recommend",
        "post /v1/events": "events",
        "get /v1/users/{user_id}/history": "events",
        "delete /v1/users/{user_id}/history": "events",
        "get /v1/users": "admin",
        "post /v1/items": "items",
        "put /v1/items/{item_id}": "items",
        "delete /v1/items/{item_id}": "items",
        "get /v1/catalog": "items",
        "post /v1/catalog/rollback": "admin",
        "get /v1/models": "admin",
        "post /v1/models/rollback": "admin",
        "post /v1/models/{version}/activate": "admin",
    }


def test_a_bound_key_reaches_its_user_alone(client: httpx.Client) -> None:
    headers = bearer("ann")

    def event(user_id: str) -> dict[str, Any]:
        return {"event_id": user_id, "user_id": user_id, "item_id": "item-1", "timestamp": time.time()}

    body = {"user_id": "ann", "slate_size": 2}
    assert client.post("/v1/recommend", headers=headers, json=body).status_code == 200
    assert client.post("/v1/events", headers=headers, json={"events": [event("ann")]}).status_code == 200
    assert len(client.get("/v1/users/ann/history", headers=headers).json()["events"]) == 1
    for answer in (
        client.post("/v1/recommend", headers=headers, json={**body, "user_id": "bob"}),
        client.post("/v1/events", headers=headers, json={"events": [event("ann"), event("bob")]}),
        client.get("/v1/users/bob/history", headers=headers),
        client.delete("/v1/users/bob/history", headers=headers),
    ):
        assert (answer.status_code, problem(answer)) == (403, "forbidden")
    assert client.get("/v1/users/bob/history", headers=bearer("all")).json()["events"] == []
    many = client.post(
        "/v1/recommend/batch", headers=headers, json={"requests": [body, {**body, "user_id": "bob"}]}
    ).json()["results"]
    assert [result["status"] for result in many] == [200, 403]


def test_beyond_its_rate_a_key_is_told_when_to_come_again(client: httpx.Client) -> None:
    headers, body = bearer("slow"), {"user_id": "ann", "slate_size": 2}
    statuses = [client.post("/v1/recommend", headers=headers, json=body).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    refused = client.post("/v1/recommend", headers=headers, json=body)
    assert problem(refused) == "rate-limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    assert client.post("/v1/recommend", headers=bearer("all"), json=body).status_code == 200


def test_each_request_of_a_batch_counts(client: httpx.Client) -> None:
    body = {"user_id": "ann", "slate_size": 2}
    many = client.post("/v1/recommend/batch", headers=bearer("slow"), json={"requests": [body] * 5}).json()["results"]
    assert [result["status"] for result in many] == [200, 200, 200, 429, 429]
    assert [result["retry_after_s"] for result in many[:3]] == [None] * 3
    assert all(1 <= result["retry_after_s"] <= 2 for result in many[3:])


def test_keys_come_and_go_while_the_service_runs(client: httpx.Client, keys_file: Path) -> None:
    def status(name: str) -> int:
        return client.get("/v1/items/item-1", headers=bearer(name)).status_code

    def until(name: str, expected: int) -> None:
        end_s = time.monotonic() + 20
        while status(name) != expected:
            assert time.monotonic() < end_s
            time.sleep(0.05)

    assert status("late") == 401
    write_keys(keys_file, [*KEYS, key("late", "recommend")])
    until("late", 200)
    keys_file.write_text("{")
    time.sleep(1.5)
    assert status("late") == 200, "a bad file changes nothing"
    assert "oneslate_key_file_current 0.0" in client.get("/metrics").text
    write_keys(keys_file, KEYS)
    until("late", 401)
    assert status("all") == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "oneslate.example"])
def test_from_afar_nobody_comes_in_without_keys(host: str, keys_file: Path) -> None:
    with pytest.raises(ValueError, match="without keys everybody there may read and change everything"):
        Settings(runner="fake", host=host)
    assert Settings(runner="fake", host=host, keys_file=keys_file).host == host
    assert Settings(runner="fake", host=host, allow_anonymous=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_on_loopback_no_keys_are_needed(host: str) -> None:
    assert Settings(runner="fake", host=host).keys_file is None


def test_a_file_that_cannot_be_used_ends_the_start_in_one_line(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    path = tmp_path / "keys.json"
    path.write_text("{}")
    app = create_app(fake_settings(keys_file=path), history=MemoryHistoryStore())
    with pytest.raises(ValueError, match=r"keys\.json: keys: Field required"), TestClient(app):
        pass


def test_every_answer_says_how_browsers_shall_treat_it(client: httpx.Client) -> None:
    for answer in (client.get("/livez"), client.get("/nowhere"), client.post("/v1/recommend", json={})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
