"""Redis is stopped, paused, slow, or resets every connection: slates go on, and no event is acknowledged and lost."""

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit import Proxy, Redis, Service, complaints, running
from measured import Figures
from test_kills import stored_histories

from service.history.breaker import NUM_FAILURES

FIRST_S = round(time.time()) - 10**6
USERS = [f"user-{number}" for number in range(20)]
BACK_WITHIN_S = 2.0


@dataclass
class Seen:
    """What a client saw of one request."""

    at_s: float
    took_s: float
    status: int
    body: dict[str, Any]


class Load:
    """Clients that ask for slates and send events all the time."""

    def __init__(self, url: str) -> None:
        self.slates: list[Seen] = []
        self.events: list[Seen] = []
        self._url = url
        self._stopping = threading.Event()
        self._clients = [
            threading.Thread(target=self._ask, args=("/v1/recommend", self._slate, self.slates, 0.05)),
            threading.Thread(target=self._ask, args=("/v1/events", self._event, self.events, 0.05)),
        ]
        self._numbers = itertools.count()

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for client in self._clients:
            client.join()

    def _slate(self) -> dict[str, Any]:
        return {"user_id": USERS[next(self._numbers) % len(USERS)], "slate_size": 5}

    def _event(self) -> dict[str, Any]:
        number = next(self._numbers)
        event = {
            "event_id": f"e{number}",
            "user_id": USERS[number % len(USERS)],
            "item_id": f"item-{number % 900}",
            "timestamp": FIRST_S + number,
        }
        return {"events": [event]}

    def _ask(self, path: str, body: Callable[[], dict[str, Any]], into: list[Seen], pause_s: float) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stopping.is_set():
                sent = body()
                began_s = time.monotonic()
                try:
                    answer = client.post(path, json=sent)
                except httpx.TransportError as error:
                    into.append(Seen(began_s, time.monotonic() - began_s, 0, {**sent, "type": repr(error)}))
                    continue
                took_s = time.monotonic() - began_s
                into.append(Seen(began_s, took_s, answer.status_code, {**sent, **answer.json()}))
                time.sleep(pause_s)


def break_it(fault: str, server: Redis, proxy: Proxy) -> Callable[[], None]:
    """Breaks it, and returns how it comes back."""
    if fault == "stopped":
        server.end()
        return server.start
    if fault == "paused":
        server.signal(signal.SIGSTOP)
        return lambda: server.signal(signal.SIGCONT)
    proxy.mode = "slow" if fault == "slow" else "reset"

    def pass_again() -> None:
        proxy.mode = "pass"

    return pass_again


@pytest.mark.parametrize("fault", ["stopped", "paused", "slow", "resetting"])
def test_slates_go_on_and_no_acknowledged_event_is_lost(
    fault: str, tmp_path: Path, scaled: Callable[[float, float], float], figures: Figures
) -> None:
    # A machine busy with other tests is not what is tested: there everybody has more patience.
    fault_s, deadline_s, timeout_s = scaled(5, 30), scaled(4, 0.5), scaled(0.25, 0.05)
    server = Redis(tmp_path / "redis")
    proxy = Proxy(server.port)
    proxy.delay_s = 4 * timeout_s
    service = Service(
        tmp_path,
        proxy.url,
        ONESLATE_DEADLINE_MS=deadline_s * 1000,
        ONESLATE_HISTORY__READ_TIMEOUT_MS=round(timeout_s * 1000),
        ONESLATE_HISTORY__CONNECT_TIMEOUT_MS=round(timeout_s * 1000),
    )
    with running(server), proxy.open(), running(service), Load(service.url) as load:
        time.sleep(scaled(2, 5))
        broken_s = time.monotonic()
        come_back = break_it(fault, server, proxy)
        time.sleep(fault_s)
        ended_s = time.monotonic()
        come_back()
        back_s = time.monotonic()
        time.sleep(BACK_WITHIN_S + scaled(1, 5))
        load.__exit__()
        histories = asyncio.run(stored_histories(server.url, USERS))
    assert complaints(service.log) == []

    before = [seen for seen in load.slates if seen.at_s + seen.took_s < broken_s]
    broken_for_all_s = broken_s + 1 + NUM_FAILURES * timeout_s
    during = [seen for seen in load.slates if broken_for_all_s < seen.at_s < ended_s - 2 * timeout_s]
    after = [seen for seen in load.slates if seen.at_s > back_s + BACK_WITHIN_S]
    assert min(len(before), len(during), len(after)) > 3
    assert {seen.status for seen in load.slates} == {200}
    assert max(seen.took_s for seen in load.slates) <= deadline_s
    assert not any(seen.body["degraded"] for seen in [*before[10:], *after])
    assert {seen.body["reason"] for seen in during} <= {"stale_history", "history_unavailable"}
    assert all(seen.body["degraded"] and len(seen.body["items"]) == 5 for seen in during)

    refused = [seen for seen in load.events if seen.status != httpx.codes.OK]
    assert {(seen.status, seen.body["type"]) for seen in refused} == {(503, "urn:oneslate:problem:history-unavailable")}
    assert all(broken_s - 0.5 - timeout_s < seen.at_s < back_s + BACK_WITHIN_S for seen in refused)
    lasted = [seen for seen in load.events if broken_for_all_s < seen.at_s < ended_s - 2 * timeout_s]
    assert len(lasted) > 3
    assert {seen.status for seen in lasted} == {503}
    assert sum(seen.at_s > back_s + BACK_WITHIN_S for seen in load.events) > 3
    acknowledged = [seen.body["events"][0] for seen in load.events if seen.status == httpx.codes.OK]
    assert {seen.body["results"][0]["status"] for seen in load.events if seen.status == httpx.codes.OK} == {"stored"}
    lost = [
        event
        for event in acknowledged
        if event["timestamp"] * 1000 not in {timestamp_ms for _, timestamp_ms in histories[event["user_id"]]}
    ]
    assert lost == []
    name = f"Redis {fault} for {fault_s:.0f} s"
    normal = min(seen.at_s for seen in load.slates if seen.at_s > ended_s and not seen.body["degraded"])
    figures(name, "slates", len(during), "answered while it lasted, all degraded, no 5xx")
    figures(name, "slates", max(seen.took_s for seen in load.slates) * 1000, "ms at most, by the client")
    figures(name, "events", len(refused), "refused with 503")
    figures(name, "events", len(acknowledged), "acknowledged, none lost")
    figures(name, "slates", max(0.0, normal - back_s), "s from its return to the first normal one")
