"""Clients that speak HTTP badly, slowly or not at all: each gets an answer or the door, and nothing of it stays."""

import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from kit import Redis, Service, complaints, running, until
from measured import Figures

READ_S = 0.4
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
BODY = b'{"user_id": "ann", "slate_size": 3}'


def request(body: bytes = BODY, path: bytes = b"/v1/recommend", head: bytes = b"", method: bytes = b"POST") -> bytes:
    return (
        method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + head + b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )  # fmt: skip


def exchange(service: Service, *pieces: bytes, pause_s: float = 0.0, half_close: bool = False) -> bytes:
    """Everything that comes back until the service closes, or for twice as long as a request may take."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=2 * READ_S) as client:
        with suppress(OSError):  # the service may close while we still write
            for piece in pieces:
                client.sendall(piece)
                time.sleep(pause_s)
            if half_close:
                client.shutdown(socket.SHUT_WR)
        received = b""
        with suppress(OSError):
            while chunk := client.recv(65536):
                received += chunk
        return received


def first_answer(service: Service, data: bytes) -> bytes:
    """What comes back first; nothing when the service only closes."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10 * READ_S) as client, suppress(OSError):
        client.sendall(data)
        return client.recv(65536)
    return b""


@contextmanager
def served(folder: Path, **settings: object) -> Iterator[Service]:
    server = Redis(folder / "redis", fsync="everysec")
    with running(server):
        made = Service(folder, server.url, **settings)
        with running(made):
            yield made
            assert made.is_running
        assert complaints(made.log) == []


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(
        tmp_path_factory.mktemp("raw"),
        ONESLATE_LIMITS__READ_S=READ_S,
        ONESLATE_LIMITS__HEAD_BYTES=8192,
        ONESLATE_LIMITS__BODY_BYTES=20_000,
        ONESLATE_DEADLINE_MS=5000,
    ) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_stays(service: Service) -> Iterator[None]:
    with httpx.Client(base_url=service.url) as client:
        client.get("/livez")
    until(lambda: num_connections(service) == 0, "connections of before are closed")
    before = service.process.num_fds() - num_redis_connections(service)
    yield
    until(lambda: num_connections(service) == 0, "every connection is closed", timeout_s=10 * READ_S)
    # Redis' own connections come and go: there are as many as were busy at once.
    until(lambda: service.process.num_fds() - num_redis_connections(service) <= before, "descriptors are closed")
    with httpx.Client(base_url=service.url) as client:
        assert client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 3}).status_code == 200
        metrics = client.get("/metrics").text
    answered = re.findall(r'^oneslate_http_requests_total\{.*status="(5\d\d)".*', metrics, re.MULTILINE)
    assert answered == []


def num_connections(service: Service) -> int:
    return sum(
        one.status == "ESTABLISHED" for one in service.process.net_connections("tcp") if one.laddr.port == service.port
    )


def num_redis_connections(service: Service) -> int:
    return sum(
        bool(one.raddr) and one.raddr.port == service.redis_port for one in service.process.net_connections("tcp")
    )


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in STATUS.findall(received)]


def test_a_head_that_never_ends_is_answered_when_its_time_is_over(service: Service) -> None:
    began_s = time.monotonic()
    received = exchange(service, b"POST /v1/recom", b"mend HTTP/1.1\r\nX-", b"A: " + b"b" * 40, pause_s=0.05)
    assert statuses(received) == [408]
    assert b"urn:oneslate:problem:request-timeout" in received
    assert b"application/problem+json" in received
    assert READ_S * 0.9 < time.monotonic() - began_s < 10 * READ_S


def test_bytes_that_trickle_do_not_win_time(service: Service) -> None:
    began_s = time.monotonic()
    pieces = [request()[place : place + 1] for place in range(60)]
    assert statuses(exchange(service, *pieces, pause_s=READ_S / 20)) == [408]
    assert time.monotonic() - began_s < READ_S * 60 / 20 + 1


@pytest.mark.parametrize("first", [b"", b"\r\n", b"\r\n\r\n\r\n"])
def test_who_asks_nothing_is_shown_the_door(service: Service, first: bytes) -> None:
    began_s = time.monotonic()
    assert exchange(service, first) == b""
    assert time.monotonic() - began_s < 10 * READ_S


def test_line_ends_after_an_answer_keep_no_connection_open(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(request())
        assert statuses(client.recv(65536)) == [200]
        began_s = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began_s < 10 * READ_S:
                client.sendall(b"\r\n")
                client.settimeout(READ_S / 4)
                with suppress(TimeoutError):
                    if client.recv(1) == b"":
                        break
        assert time.monotonic() - began_s < 8 * READ_S


def test_who_does_not_read_is_shown_the_door(service: Service) -> None:
    head = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", service.port))) for _ in range(3)]
        for client in clients:
            client.sendall(60 * head)  # megabytes of answers: more than the kernel takes for a client
        # They stay connected, and ask no more.
        until(lambda: num_connections(service) == 0, "nobody is served for ever", timeout_s=20 * READ_S)


def test_who_leaves_in_the_middle_of_pipelined_answers_is_no_error(service: Service) -> None:
    head = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(60 * head)
            client.recv(100_000)  # the rest is being written; the log must not complain


def test_who_reads_slowly_gets_all_of_it(service: Service) -> None:
    head = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(39 * (head + b"\r\n") + head + b"Connection: close\r\n\r\n")
        received = bytearray()
        while chunk := client.recv(2**20):
            received += chunk
            time.sleep(READ_S / 20)
    assert statuses(bytes(received)) == [200] * 40


def test_half_a_body_is_answered_when_its_time_is_over(service: Service) -> None:
    assert statuses(exchange(service, request()[:-10])) == [408]
    chunked = request(b'5\r\n{"use', head=b"Transfer-Encoding: chunked\r\n")
    without_length = b"\r\n".join(line for line in chunked.split(b"\r\n") if not line.startswith(b"Content-Length"))
    assert statuses(exchange(service, without_length)) == [408]


def test_who_leaves_in_the_middle_of_a_body_leaves_nothing(service: Service) -> None:
    for length in range(1, len(request()), 7):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(request()[:length])
    assert exchange(service, request()[:-10], half_close=True)[:12] in (b"", b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "head",
    [b"X: " + b"y" * 9000 + b"\r\n", b"".join(b"X-%d: y\r\n" % number for number in range(2000))],
    ids=["one long", "many"],
)
def test_a_head_without_end_is_refused(service: Service, head: bytes) -> None:
    whole = request(head=head)
    for pieces in ((whole,), (whole[:100], whole[100:9000]), (b"GET /", b"a" * 9000)):
        assert statuses(exchange(service, *pieces, pause_s=0.02)) == [431]


def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    sizes = [1, 2, 3, 4, 5] * 4
    bodies = [b'{"user_id": "ann", "slate_size": %d}' % size for size in sizes]
    last = request(head=b"Connection: close\r\n")
    received = exchange(service, b"".join(map(request, bodies)) + last)
    assert statuses(received) == [200] * (len(sizes) + 1)
    answers = [answer.count(b'"item_id"') for answer in received.split(b"HTTP/1.1 ")[1:]]
    assert answers == [*sizes, 3]


def test_more_connections_than_there_may_be_are_refused_and_the_others_live(tmp_path: Path) -> None:
    with (
        served(tmp_path, ONESLATE_LIMITS__CONNECTIONS=20, ONESLATE_LIMITS__READ_S=60) as service,
        httpx.Client(base_url=service.url) as client,
        ExitStack() as stack,
    ):
        assert client.get("/livez").status_code == 200
        for _ in range(19):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        received = first_answer(service, request())
        assert statuses(received) == [503]
        assert b"too-many-connections" in received
        assert client.get("/livez").status_code == 200


def test_trailers_without_end_are_refused(service: Service) -> None:
    chunked = b"POST /v1/recommend HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [chunked + b"0\r\nX: ", *[b"y" * 3000] * 10]
    assert statuses(exchange(service, *pieces, pause_s=0.01)) == [431]


def test_many_large_requests_at_once_are_no_large_head(service: Service) -> None:
    body = BODY[:-1] + b', "exclude": [' + b", ".join([b'"' + b"x" * 100 + b'"'] * 5) + b"]}"
    received = exchange(service, request(body) * 20 + request(body)[:50])
    assert statuses(received) == [200] * 20 + [408]


def test_an_early_answer_is_the_only_one(service: Service) -> None:
    plain = request().replace(b"application/json", b"text/plain")
    for asked, status in ((plain, 415), (request(path=b"/nowhere"), 404)):
        assert statuses(exchange(service, asked[:-10])) == [status]


def test_the_time_of_a_request_begins_with_its_first_byte(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        for piece, pause_s in ((b"", 0.8), (request()[:20], 0.5), (request()[20:], 0.0)):
            client.sendall(piece)
            time.sleep(pause_s * READ_S)
        assert statuses(client.recv(65536)) == [200]


HOSTILE = {
    "invalid UTF-8": request(b'{"user_id": "\xff\xfe", "slate_size": 3}'),
    "lone surrogate": request(b'{"user_id": "\\ud800", "slate_size": 3}'),
    "huge number": request(b'{"user_id": "a", "slate_size": 1' + b"0" * 5000 + b"}"),
    "huge exponent": request(b'{"user_id": "a", "slate_size": 3, "deadline_ms": 1e99999}'),
    "deep nesting": request(b"[" * 9000),
    "deep objects": request(b'{"filter":' * 900),
    "nothing": request(b""),
    "NUL": request(b"\0" * 100),
    "not a number": request(b'{"user_id": "a", "slate_size": NaN}'),
    "body that is none": request(b"GET / HTTP/1.1\r\n\r\n"),
    "path of percents": request(path=b"/v1/items/%ff%00%zz", method=b"GET", body=b""),
    "path of bytes": request(path=b"/v1/items/\xff\xfe\x80", method=b"GET", body=b""),
    "absolute path": request(path=b"http://other/v1/recommend"),
    "no such method": request(method=b"BREW"),
    "length twice": request(head=b"Content-Length: 3\r\n"),
    "negative length": b"POST /v1/recommend HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    "length beyond 64 bits": b"POST /v1/recommend HTTP/1.1\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
    "length and chunks": request(head=b"Transfer-Encoding: chunked\r\n"),
    "chunk beyond 64 bits": b"POST /v1/events HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "upgrade": request(head=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    "upgrade to 2": request(head=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "expect": request(head=b"Expect: 100-continue\r\n"),
    "header without colon": request(head=b"nothing\r\n"),
    "bytes in a header": request(head=b"X: \xff\x00\x7f\r\n"),
    "request id": request(head=b"X-Request-Id: \xff\xfe\r\n"),
    "key": request(head=b"Authorization: Bearer \xff\xfe\r\n"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_request_is_no_failure_of_ours(service: Service, name: str) -> None:
    received = first_answer(service, HOSTILE[name])
    assert received == b"" or statuses(received), received[:300]
    assert all(status < 500 for status in statuses(received))


def test_random_damage_is_no_failure_of_ours(
    service: Service, scaled: Callable[[int, int], int], figures: Figures
) -> None:
    rng = random.Random(7)
    seeds = [request(), request(b'{"events": []}', b"/v1/events"), *HOSTILE.values()]
    counts: Counter[int] = Counter()
    num_cases = scaled(100, 2000)
    for _ in range(num_cases):
        damaged = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(damaged))
            what = rng.randrange(4)
            if what == 0:
                damaged[place] = rng.randrange(256)
            elif what == 1:
                del damaged[place : place + rng.randrange(20)]
            elif what == 2:
                damaged[place:place] = damaged[: rng.randrange(40)]
            else:
                damaged[place:place] = rng.randbytes(rng.randrange(20))
            if not damaged:
                break
        for status in statuses(first_answer(service, bytes(damaged))):
            counts[status] += 1
            assert status < 500, bytes(damaged)
    assert counts.total() > num_cases / 2
    figures("raw sockets, damaged requests", "requests", num_cases, "")
    for status, count in sorted(counts.items()):
        figures("raw sockets, damaged requests", f"answers of {status}", count, "")


def test_what_follows_a_request_on_its_connection_answers_nothing_in_its_place(service: Service) -> None:
    received = exchange(service, request() + b"\0\0 nonsense\r\n\r\n", half_close=True)
    assert statuses(received) in ([], [200], [200, 400])
