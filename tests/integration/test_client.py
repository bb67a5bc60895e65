"""The client against the service: real HTTP, both forms; and against servers that do what a service should not."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import pytest
from live_http import fake_settings, free_port, live_client

from oneslate_client import (
    ApiError,
    AsyncOneSlate,
    Event,
    ItemChange,
    OneSlate,
    RetryPolicy,
    SlateRequest,
    TagFilter,
    TryLater,
    UnexpectedAnswer,
    Unreachable,
)
from service.history.embedded import EmbeddedRedis
from service.keys import ApiKey, digest, new_token, write_keys

T = TypeVar("T")


class Both:
    """One way to call both clients."""

    def __init__(self, kind: str, url: str, **settings: Any) -> None:
        self._kind = kind
        self._of = (url, settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        url, settings = self._of
        if self._kind == "waiting":

            def call(*arguments: Any, **options: Any) -> Any:
                with OneSlate(url, **settings) as client:
                    return getattr(client, name)(*arguments, **options)

            return call

        async def ask(*arguments: Any, **options: Any) -> Any:
            async with AsyncOneSlate(url, **settings) as client:
                return await getattr(client, name)(*arguments, **options)

        return lambda *arguments, **options: asyncio.run(ask(*arguments, **options))


@pytest.fixture(params=["waiting", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        EmbeddedRedis(tmp_path_factory.mktemp("redis")) as redis_url,
        live_client(fake_settings(redis_url)) as client,
    ):
        yield str(client.base_url)


def test_a_day_of_a_user(kind: str, url: str) -> None:
    client, user = Both(kind, url), f"ann/{kind} 1?"
    assert client.ready().status == "ready"
    version = client.version()
    slate = client.recommend(user, 5, filter=TagFilter(any_of=["odd"]), explain=True, beam_width=7)
    assert (len(slate.items), slate.source, slate.reason, slate.beam_width) == (5, "model", "cold_start", 7)
    assert slate.model_version == version.model_version
    assert len(slate.explanation or ()) == 5
    event = Event(user_id=user, item_id=slate.items[0].item_id, recommendation_id=slate.recommendation_id)
    bad = Event(user_id=user, item_id="no such item")
    stored, refused = client.send_events([event, bad])
    assert (stored.event_id, stored.status, refused.status) == (event.event_id, "stored", "refused")
    assert refused.problem is not None and refused.problem.type.endswith("unknown-item")  # noqa: PT018
    assert client.send_events([event])[0].status == "duplicate"
    history = client.history(user)
    assert [one.item_id for one in history.events] == [event.item_id]
    assert user in client.some_users(100)
    following = client.recommend(user, 5, continue_from=slate.recommendation_id)
    assert not {item.item_id for item in slate.items} & {item.item_id for item in following.items}
    one, other = client.recommend_batch(
        [SlateRequest(user_id=user, slate_size=2), SlateRequest(user_id="b", slate_size=99)]
    )
    assert (one.status, len(one.answer.items), other.status, other.answer) == (200, 2, 422, None)
    client.forget(user)
    assert client.history(user).events == []


def test_an_item_comes_and_goes(kind: str, url: str) -> None:
    client, item_id = Both(kind, url), f"shop/{kind} ü"
    before = client.catalog()
    assert client.put_item(item_id, title="A lamp", tags=["lamp"]).status == "added"
    [changed] = client.change_items([ItemChange(item_id=item_id, text="It shines")])
    assert changed.status == "changed"
    deadline_s = time.monotonic() + 20
    while client.catalog().catalog_version == before.catalog_version:
        assert time.monotonic() < deadline_s
    item = client.item(item_id)
    assert (item.title, item.text, item.tags, item.available) == ("A lamp", "It shines", ["lamp"], True)
    assert len(client.similar(item_id, 3).items) == 3
    client.remove_item(item_id)
    assert client.models().active == "fake"
    with pytest.raises(ValueError, match="change_items"):
        client.item("a/similar")


def test_problems_are_errors_with_their_members(kind: str, url: str) -> None:
    client = Both(kind, url)
    with pytest.raises(ApiError) as caught:
        client.recommend("ann", 99)
    assert (caught.value.status, caught.value.code, caught.value.errors[0].pointer) == (
        422,
        "invalid-request",
        "/slate_size",
    )
    assert caught.value.request_id
    with pytest.raises(ApiError, match="no such item") as missing:
        client.item("no such item")
    assert missing.value.status == 404


def test_keys_are_sent_and_a_missing_one_is_told(kind: str, tmp_path: Path) -> None:
    token = new_token()
    write_keys(tmp_path / "keys.json", [ApiKey(name="shop", sha256=digest(token), scopes=("recommend",))])
    with live_client(fake_settings(keys_file=tmp_path / "keys.json")) as live:
        assert Both(kind, str(live.base_url), key=token).recommend("ann", 3).items
        with pytest.raises(ApiError, match="key") as caught:
            Both(kind, str(live.base_url)).recommend("ann", 3)
        assert caught.value.status == 401


def test_a_rate_limit_is_waited_for_or_told(kind: str, tmp_path: Path) -> None:
    token = new_token()
    key = ApiKey(name="slow", sha256=digest(token), scopes=("recommend",), requests_per_s=1.0, burst=1)
    write_keys(tmp_path / "keys.json", [key])
    with live_client(fake_settings(keys_file=tmp_path / "keys.json")) as live:
        patient = Both(kind, str(live.base_url), key=token, timeout_s=20.0)
        begin_s = time.monotonic()
        assert [len(patient.recommend("ann", 3).items) for _ in range(3)] == [3, 3, 3]
        assert 1.0 < time.monotonic() - begin_s < 15.0
        hasty = Both(kind, str(live.base_url), key=token, timeout_s=0.5)
        begin_s = time.monotonic()
        with pytest.raises(TryLater) as caught:
            [hasty.recommend("ann", 3) for _ in range(3)]
        assert caught.value.status == 429
        assert (caught.value.retry_after_s or 0) >= 1
        assert time.monotonic() - begin_s < 2.0


@contextmanager
def scripted(*answers: tuple[int, dict[str, str], bytes] | None) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server that gives these answers, and what it was asked; None: it hangs up without one."""
    asked: list[tuple[str, str, bytes]] = []
    script = list(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            asked.append((self.command, self.path, self.rfile.read(int(self.headers.get("Content-Length", 0)))))
            answer = script.pop(0)
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_event_keeps_its_id_however_often_it_is_sent(kind: str) -> None:
    event = Event(user_id="ann", item_id="a")
    good = json.dumps({"results": [{"event_id": event.event_id, "status": "duplicate", "new_member": 1}]}).encode()
    unavailable = (503, {"Content-Type": "application/problem+json"}, b'{"title": "no Redis", "status": 503}')
    with scripted(None, unavailable, (502, {}, b"<html>bad gateway"), (200, {}, good)) as (url, asked):
        [result] = Both(kind, url).send_events([event])
    assert (result.status, result.new_member) == ("duplicate", 1)
    assert len({body for _, _, body in asked}) == 1
    assert json.loads(asked[0][2])["events"][0]["event_id"] == event.event_id
    assert len(asked) == 4


def test_what_could_do_harm_twice_is_sent_once(kind: str) -> None:
    with scripted(None) as (url, asked):
        with pytest.raises(Unreachable):
            Both(kind, url).roll_back_model()
        assert len(asked) == 1
    with scripted(None, (200, {}, b"{}")) as (url, asked):
        with pytest.raises(UnexpectedAnswer, match="Models"):
            Both(kind, url).roll_back_model(leaving="two")
        assert [json.loads(body) for _, _, body in asked] == [{"model_version": "two"}] * 2


def test_members_that_are_new_are_no_reason_to_fail(kind: str) -> None:
    good = json.dumps({"results": [{"event_id": "e", "status": "stored"}], "took_ms": 3}).encode()
    with scripted((200, {}, good)) as (url, _):
        [result] = Both(kind, url).send_events([Event(user_id="ann", item_id="a")])
    assert result.status == "stored"


def test_not_to_be_ready_is_an_answer_but_not_every_503_is_it(kind: str) -> None:
    waits = b'{"status": "not ready", "reasons": ["stopping"], "degraded": []}'
    full = (503, {"Content-Type": "application/problem+json"}, b'{"title": "Too many connections", "status": 503}')
    with scripted((503, {}, b"<html>no upstream"), full, (503, {}, waits)) as (url, asked):
        assert Both(kind, url).ready().reasons == ["stopping"]
        assert len(asked) == 3


def test_what_is_no_answer_of_ours_is_told(kind: str) -> None:
    with scripted((200, {}, b"<html>hello")) as (url, _), pytest.raises(UnexpectedAnswer, match="no JSON"):
        Both(kind, url).version()
    with scripted((200, {}, b"[1]")) as (url, _), pytest.raises(UnexpectedAnswer, match="Version"):
        Both(kind, url).version()
    with scripted((418, {}, b"a teapot")) as (url, _), pytest.raises(ApiError, match="teapot"):
        Both(kind, url).version()


def test_nobody_there_is_told_within_the_deadline(kind: str) -> None:
    begin_s = time.monotonic()
    with pytest.raises(Unreachable):
        Both(kind, f"http://127.0.0.1:{free_port()}", timeout_s=0.6, retries=RetryPolicy(max_tries=50)).version()
    assert time.monotonic() - begin_s < 3.0


@pytest.mark.parametrize("wrong", [{"url": "ftp://x"}, {"url": "no url"}, {"url": "http://x", "timeout_s": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"URL|positive"):
        OneSlate(**wrong)
