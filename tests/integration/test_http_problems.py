"""Bad input over HTTP: one clear problem each, never a traceback, never a 5xx."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from live_http import fake_settings, live_client

from service.api.answers import ProblemBody
from service.inference.fake_runner import FakeRunner, fake_manifest
from service.inference.features import RequestInputs
from service.inference.runner import Batch, Decoded
from service.settings import LimitSettings

GOOD = {"user_id": "ann", "slate_size": 5}
EVENT = {"event_id": "e", "user_id": "ann", "item_id": "item-1", "timestamp": 1_700_000_000}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    limits = LimitSettings(exclude=3, history=2, events=2, tags=2)
    with live_client(fake_settings(limits=limits)) as client:
        yield client


def problem_of(answer: httpx.Response, status: int, code: str) -> ProblemBody:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = ProblemBody.model_validate_json(answer.content)
    assert (problem.status, problem.type) == (status, f"urn:oneslate:problem:{code}")
    assert problem.request_id == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert "Error" not in problem.detail
    return problem


def event(**fields: Any) -> dict[str, Any]:
    return {"events": [{**EVENT, **fields}]}


def past(**fields: Any) -> dict[str, Any]:
    return {**GOOD, "history": [{"item_id": "a", "timestamp": 0, **fields}]}


@pytest.mark.parametrize(
    ("path", "body", "pointer", "detail"),
    [
        ("/v1/recommend", {"slate_size": 5}, "/user_id", "Field required"),
        ("/v1/recommend", {**GOOD, "sise": 5}, "/sise", "not permitted"),
        ("/v1/recommend", {**GOOD, "slate_size": 0}, "/slate_size", "greater than or equal to 1"),
        ("/v1/recommend", {**GOOD, "slate_size": 10_000}, "/slate_size", "at most 10 items"),
        ("/v1/recommend", {**GOOD, "slate_size": 10**400}, None, None),
        ("/v1/recommend", {**GOOD, "continue_from": "last"}, "/continue_from", "match"),
        ("/v1/recommend", {**GOOD, "num_slates": 0}, "/num_slates", "greater than or equal to 1"),
        ("/v1/recommend", {**GOOD, "num_slates": 5}, "/num_slates", "4 slates at a time"),
        ("/v1/recommend", {**GOOD, "slate_size": 2.5}, "/slate_size", "valid integer"),
        ("/v1/recommend", {**GOOD, "slate_size": "5"}, "/slate_size", "valid integer"),
        ("/v1/recommend", {**GOOD, "slate_size": True}, "/slate_size", "valid integer"),
        ("/v1/recommend", {**GOOD, "user_id": "a\nb"}, "/user_id", "pattern"),
        ("/v1/recommend", {**GOOD, "user_id": ""}, "/user_id", "at least 1"),
        ("/v1/recommend", {**GOOD, "user_id": "a" * 257}, "/user_id", "at most 256"),
        ("/v1/recommend", {**GOOD, "user_id": 7}, "/user_id", "valid string"),
        ("/v1/recommend", {**GOOD, "exclude": ["ok", "a\u0000b"]}, "/exclude/1", "pattern"),
        ("/v1/recommend", {**GOOD, "exclude": ["a"] * 4}, "/exclude", "at most 3"),
        ("/v1/recommend", {**GOOD, "exclude_seen": "no"}, "/exclude_seen", "valid boolean"),
        ("/v1/recommend", {**GOOD, "seen_actions": ["buy"]}, "/seen_actions/0", "view, watch"),
        ("/v1/recommend", {**GOOD, "filter": "kids"}, "/filter", "no filter of this name"),
        ("/v1/recommend", {**GOOD, "filter": {}}, "/filter", "needs any_of"),
        ("/v1/recommend", {**GOOD, "diversity": -0.1}, "/diversity", "greater than or equal to 0"),
        ("/v1/recommend", {**GOOD, "diversity": 101}, "/diversity", "less than or equal to 100"),
        ("/v1/recommend", {**GOOD, "temperature": 0}, "/temperature", "greater than or equal to 0.01"),
        ("/v1/recommend", {**GOOD, "temperature": 1, "seed": 2**32}, "/seed", "less than or equal to 4294967295"),
        ("/v1/recommend", {**GOOD, "max_per_group": 0}, "/max_per_group", "greater than or equal to 1"),
        ("/v1/recommend", {**GOOD, "max_per_group": 1.5}, "/max_per_group", "valid integer"),
        ("/v1/recommend", {**GOOD, "filter": {"any_of": []}}, "/filter/any_of", "at least 1"),
        ("/v1/recommend", {**GOOD, "filter": {"any_of": ["a", "b", "c"]}}, "/filter/any_of", "at most 2"),
        ("/v1/recommend", {**GOOD, "deadline_ms": 0}, "/deadline_ms", "greater than or equal to 1"),
        ("/v1/recommend", past(timestamp="yesterday"), "/history/0/timestamp", "RFC 3339"),
        ("/v1/recommend", past(timestamp="2024-01-01T00:00:00"), "/history/0/timestamp", "RFC 3339"),
        ("/v1/recommend", past(timestamp="2024-02-30T00:00:00Z"), "/history/0/timestamp", "day is out of range"),
        ("/v1/recommend", past(timestamp=1.7e12), "/history/0/timestamp", "not milliseconds"),
        ("/v1/recommend", past(timestamp=None), "/history/0/timestamp", "Unix seconds"),
        ("/v1/recommend", past(action="buy"), "/history/0/action", "not one of view, watch"),
        ("/v1/recommend", past(value=1e39), "/history/0/value", "less than or equal"),
        ("/v1/recommend", {**GOOD, "history": [{"item_id": "a", "timestamp": 0}] * 3}, "/history", "at most 2"),
        ("/v1/events", {"events": []}, "/events", "at least 1"),
        ("/v1/events", {"events": [EVENT] * 3}, "/events", "at most 2"),
        ("/v1/events", event(event_id=None), "/events/0/event_id", "valid string"),
        ("/v1/events", event(item_id="a\r\nb"), "/events/0/item_id", "pattern"),
        ("/v1/events", event(extra=1), "/events/0/extra", "not permitted"),
        ("/v1/events", [], "", "object"),
    ],
)
def test_each_bad_body_is_told_what_is_wrong_and_where(
    client: httpx.Client, path: str, body: Any, pointer: str | None, detail: str | None
) -> None:
    answer = client.post(path, json=body)
    if pointer is None:  # a number of 400 digits: whether JSON or not, it is the client's mistake
        assert answer.status_code in {400, 422}
        return
    problem = problem_of(answer, 422, "invalid-request")
    assert problem.errors[0].pointer == pointer
    assert detail is not None
    assert detail in problem.errors[0].detail
    assert len(problem.errors) == 1


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["timestamp", "value"])
def test_numbers_that_are_none_are_refused(client: httpx.Client, number: str, field: str) -> None:
    text = json.dumps(event(**{field: 12345.0})).replace("12345.0", number)
    answer = client.post("/v1/events", content=text, headers={"Content-Type": "application/json"})
    problem = problem_of(answer, 422, "invalid-request")
    assert problem.errors[0].pointer == f"/events/0/{field}"
    assert "finite" in problem.errors[0].detail


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"user_id": "a"', b"\xff\xfe", b"[" * 50_000, b'{"user_id": "\\ud800"}', b"not json"]
)
def test_what_is_not_json_is_told_so(client: httpx.Client, text: bytes) -> None:
    answer = client.post("/v1/recommend", content=text, headers={"Content-Type": "application/json"})
    assert "Invalid JSON" in problem_of(answer, 400, "malformed-json").detail


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_another_media_type_is_told_which_to_send(client: httpx.Client, media_type: str) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    answer = client.post("/v1/recommend", content=json.dumps(GOOD).encode(), headers=headers)
    assert "application/json" in problem_of(answer, 415, "unsupported-media-type").detail


def test_a_charset_is_no_other_media_type(client: httpx.Client) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/recommend", content=json.dumps(GOOD).encode(), headers=headers).status_code == 200


def test_a_body_that_announces_10_mb_is_refused_before_it_is_read(client: httpx.Client) -> None:
    url = client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        head = (
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n\r\n"
        )
        connection.sendall(head.encode() + b"[")
        status = connection.recv(65536).split(b"\r\n", 1)[0]
    assert status.startswith(b"HTTP/1.1 413")


def test_a_whole_10_mb_body_is_a_problem(client: httpx.Client) -> None:
    body = json.dumps({**GOOD, "exclude": ["x" * 100] * 100_000}).encode()
    assert len(body) > 10_000_000
    problem_of(client.post("/v1/recommend", content=body), 413, "body-too-large")


def test_a_chunked_body_is_cut_off_at_the_limit(client: httpx.Client) -> None:
    num_sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal num_sent
        for _ in range(1000):
            num_sent += 100_000
            yield b"x" * 100_000

    headers = {"Content-Type": "application/json"}
    with suppress(httpx.TransportError):  # the answer may come while we still send, and the connection ends
        problem_of(client.post("/v1/recommend", content=endless(), headers=headers), 413, "body-too-large")
    assert num_sent < 60_000_000
    assert client.get("/livez").status_code == 200


def test_paths_and_methods_that_do_not_exist(client: httpx.Client) -> None:
    problem_of(client.get("/v2/recommend"), 404, "not-found")
    wrong = client.get("/v1/recommend")
    problem_of(wrong, 405, "method-not-allowed")
    assert wrong.headers["allow"] == "POST"
    assert client.put("/v1/users/ann/history").headers["allow"] == "GET, DELETE"


@pytest.mark.parametrize("user_id", ["a%0Ab", "%00", "", "a" * 257])
def test_bad_ids_in_paths(client: httpx.Client, user_id: str) -> None:
    for method in ("GET", "DELETE"):
        answer = client.request(method, f"/v1/users/{user_id}/history")
        assert problem_of(answer, 422, "invalid-request").errors[0].pointer == "/user_id"


class BrokenRunner(FakeRunner):
    """Decodes rows that no catalog holds: our own mistake."""

    def __init__(self) -> None:
        super().__init__(fake_manifest())
        self.is_broken = False

    def run(self, batch: Batch) -> Decoded:
        decoded = super().run(batch)
        if self.is_broken:
            decoded.item_rows_BWK[:] = 10**6
        return decoded


def test_our_own_mistake_is_a_500_with_a_request_id_and_a_logged_traceback(caplog: pytest.LogCaptureFixture) -> None:
    runner = BrokenRunner()
    with live_client(fake_settings(), runner=runner) as client:
        runner.is_broken = True
        answer = client.post("/v1/recommend", json=GOOD)
        problem_of(answer, 500, "internal-error")
        assert "IndexError" not in answer.text
        assert any(record.exc_info and record.levelname == "ERROR" for record in caplog.records)
        runner.is_broken = False
        assert client.post("/v1/recommend", json=GOOD).status_code == 200
        assert 'oneslate_errors_total{type="internal-error"} 1.0' in client.get("/metrics").text


def test_a_dead_worker_makes_the_service_unready_by_name() -> None:
    class DeadlyRunner(FakeRunner):
        kills = False

        def run(self, batch: Batch) -> Decoded:
            if self.kills:
                raise GeneratorExit  # not an Exception: nothing in the batcher may survive it
            return super().run(batch)

    runner = DeadlyRunner(fake_manifest())
    with live_client(fake_settings(), runner=runner) as client:
        runner.kills = True
        answer = client.post("/v1/recommend", json=GOOD)
        assert (answer.status_code, answer.json()["reason"]) == (200, "model_unavailable")
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json() == {"status": "not_ready", "reasons": ["inference_worker_gone"], "degraded": []}
        assert "oneslate_ready 0.0" in client.get("/metrics").text
        assert client.get("/livez").status_code == 200


def test_a_request_that_breaks_the_features_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with live_client(fake_settings()) as client:
        good = client.post("/v1/recommend", json=GOOD).json()
        real = RequestInputs.__post_init__

        def broken(self: RequestInputs) -> None:
            real(self)
            if self.tag_filter is not None:
                object.__setattr__(self, "now_ms", 10**30)

        monkeypatch.setattr(RequestInputs, "__post_init__", broken)
        problem_of(client.post("/v1/recommend", json={**GOOD, "filter": {"any_of": ["odd"]}}), 500, "internal-error")
        assert client.post("/v1/recommend", json=GOOD).json()["items"] == good["items"]
