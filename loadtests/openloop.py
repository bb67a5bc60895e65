"""Open-loop load: requests come on schedule, whether or not those before them are answered.

    locust -f loadtests/openloop.py --headless --users 1 --host http://127.0.0.1:8000 --rate 200 --seconds 60

What `oneslate loadtest` runs. Latencies count from the intended send time, so that a service that stalls cannot hide it
by holding up the generator. The run fails if the generator itself was late. Users and items come by Zipf's law;
the mix is slates, events, histories and changes of items.
"""

import argparse
import json
import os
import random
import sys
import time
import uuid
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests.arrivals import arrivals

RECOMMEND: Final = "/v1/recommend"
EVENTS: Final = "/v1/events"
HISTORY: Final = "/v1/users/{user_id}/history"
ITEMS: Final = "/v1/items"
VERSION: Final = "/version"
MIX: Final = {"recommend": 80, "act": 15, "look_back": 4, "change_item": 1}
"""Of a hundred requests; items are changed only where the service allows it."""
MAX_LAG_MS: Final = 20.0
"""The generator's own lateness (p99) above which the latencies mean nothing."""
_SPREAD: Final = 1000
"""Requests under way at most: beyond that the service is far gone, and more of them only fill the machine."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: argparse.ArgumentParser, **_: Any) -> None:
    """Options of this file."""
    parser.add_argument("--rate", type=float, default=50.0, help="Requests a second, on average")
    parser.add_argument("--seconds", type=float, default=30.0, help="How long they come")
    parser.add_argument("--shape", choices=["poisson", "bursts"], default="poisson", help="How they come")
    parser.add_argument("--population", type=int, default=10_000, help="Number of distinct users")
    parser.add_argument("--zipf", type=float, default=1.0, help="Exponent of users' and items' distribution")
    parser.add_argument("--deadline", type=float, default=500.0, help="Milliseconds within which a slate is good")
    parser.add_argument("--outcome", default="", help="File for what came of it, as JSON")
    parser.add_argument("--seed", type=int, default=0, help="Of the schedule and of everything that is chosen")


class Outcome:
    """What came of a run."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.latencies_ms: list[float] = []
        """Of slates that were answered, from the intended send time."""
        self.lags_ms: list[float] = []
        self.good = 0

    def count(self, kind: str) -> None:
        """One more of a kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1


class Arrivals(FastHttpUser):
    """The one user of a run: sends what is due."""

    fixed_count = 1
    connection_timeout = 5.0
    network_timeout = 30.0
    concurrency = _SPREAD

    def on_start(self) -> None:
        """Learns what the service offers."""
        options = self.environment.parsed_options
        assert options is not None
        self.options = options
        self.rng = random.Random(options.seed)
        self.outcome = Outcome()
        self.weights = list(accumulate((rank + 1) ** -options.zipf for rank in range(options.population)))
        token = os.environ.get("ONESLATE_KEY", "")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        with self._request("GET", VERSION, VERSION, None) as response:
            version = self._members(response)
        if version is None:
            sys.stderr.write(f"{self.host} does not say what it offers: {response.error or response.status_code}\n")
            self.environment.runner.quit()
            raise StopUser
        self.slate_size = version["slate_size"]
        self.actions = version["actions"]
        self.shown: list[str] = []

    @task
    def run_schedule(self) -> None:
        """Sends everything, waits for the last answer, and ends the run."""
        options, pool = self.options, Pool(_SPREAD)
        names = random.Random(options.seed + 1).choices(list(MIX), list(MIX.values()), k=1_000_003)
        began_s = time.perf_counter()
        for number, at_s in enumerate(arrivals(options.shape, options.rate, options.seconds, self.rng)):
            intended_s = began_s + at_s
            if (rest_s := intended_s - time.perf_counter()) > 0:
                gevent.sleep(rest_s)
            self.outcome.lags_ms.append((time.perf_counter() - intended_s) * 1000)
            pool.spawn(getattr(self, f"_{names[number % len(names)]}"), intended_s)
        pool.join(timeout=self.network_timeout)
        self._report(time.perf_counter() - began_s)
        self.environment.runner.quit()
        raise StopUser

    def _recommend(self, intended_s: float) -> None:
        body = {
            "user_id": self._user_id(),
            "slate_size": self.slate_size,
            "deadline_ms": self.options.deadline,
        }
        with self._request("POST", RECOMMEND, RECOMMEND, intended_s, json=body) as response:
            latency_ms = response.request_meta["response_time"]
            if response.status_code == 429:
                self.outcome.count("refused")
                if not (response.headers or {}).get("retry-after"):
                    response.failure("429 without Retry-After")
                else:
                    response.success()  # it is told when to come again: what overload is to look like
                return
            if (slate := self._members(response)) is None:
                self.outcome.count("failed")
                return
            self.outcome.latencies_ms.append(latency_ms)
            self.outcome.count(f"{slate['source']}, {slate['reason'] or 'no reason'}")
            if slate["source"] == "model" and latency_ms <= self.options.deadline:
                self.outcome.good += 1
            self.shown = [item["item_id"] for item in slate["items"]] or self.shown

    def _act(self, intended_s: float) -> None:
        if not self.shown:
            return
        event = {
            "event_id": uuid.uuid4().hex,
            "user_id": self._user_id(),
            "item_id": self.shown[self._rank(len(self.shown))],
            "action": self.rng.choice(self.actions),
            "timestamp": time.time(),
        }
        with self._request("POST", EVENTS, EVENTS, intended_s, json={"events": [event]}) as response:
            answer = self._members(response)
            if answer is not None and answer["results"][0]["status"] != "stored":
                response.failure(f"{answer['results'][0]['status']}: {answer['results'][0].get('problem')}")

    def _look_back(self, intended_s: float) -> None:
        path = HISTORY.format(user_id=self._user_id())
        with self._request("GET", path, HISTORY, intended_s) as response:
            self._members(response)

    def _change_item(self, intended_s: float) -> None:
        """Takes an item out and puts it back: what is in service stays what it is."""
        if not self.shown:
            return
        item_id = self.rng.choice(self.shown)
        for available in (False, True):
            body = {"items": [{"item_id": item_id, "available": available}]}
            with self._request("POST", ITEMS, ITEMS, intended_s, json=body) as response:
                self._members(response)
            intended_s = time.perf_counter()

    def _request(self, method: str, path: str, name: str, intended_s: float | None, **kwargs: Any) -> Any:
        response = self.client.request(method, path, name=name, headers=self.headers, catch_response=True, **kwargs)
        return _Timed(response, intended_s)

    @staticmethod
    def _members(response: Any) -> dict[str, Any] | None:
        try:
            members: dict[str, Any] = response.json()
        except (ValueError, TypeError):
            response.failure(f"{response.status_code} without JSON: {response.error}")
            return None
        if response.status_code != 200:
            response.failure(f"{response.status_code} {members.get('type')}")
            return None
        return members

    def _user_id(self) -> str:
        return f"visitor-{self.rng.choices(range(len(self.weights)), cum_weights=self.weights)[0]}"

    def _rank(self, number: int) -> int:
        return self.rng.choices(range(number), [(rank + 1) ** -self.options.zipf for rank in range(number)])[0]

    def _report(self, wall_s: float) -> None:
        lags_ms = sorted(self.outcome.lags_ms)
        lag_p99_ms = lags_ms[int(len(lags_ms) * 0.99)] if lags_ms else 0.0
        members = {
            "asked": len(lags_ms),
            "wall_s": wall_s,
            "counts": self.outcome.counts,
            "good": self.outcome.good,
            "latencies_ms": sorted(self.outcome.latencies_ms),
            "lag_p99_ms": lag_p99_ms,
        }
        if self.options.outcome:
            Path(self.options.outcome).write_text(json.dumps(members), encoding="utf-8")
        if lag_p99_ms > MAX_LAG_MS:
            self.environment.process_exit_code = 3
            events.request.fire(  # type: ignore[no-untyped-call]
                request_type="generator", name="lag", response_time=lag_p99_ms, response_length=0, context={},
                exception=RuntimeError(f"the generator itself was {lag_p99_ms:.1f} ms late (p99)"),
            )  # fmt: skip


class _Timed:
    """A request whose time counts from when it was to be sent."""

    def __init__(self, context: Any, intended_s: float | None) -> None:
        self._context = context
        self._intended_s = intended_s

    def __enter__(self) -> Any:
        response = self._context.__enter__()
        if self._intended_s is not None:
            response.request_meta["response_time"] = (time.perf_counter() - self._intended_s) * 1000
        return response

    def __exit__(self, *error: Any) -> Any:
        return self._context.__exit__(*error)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def be_patient(environment: Environment, **_: Any) -> None:
    """The run ends when the schedule does."""
    environment.stop_timeout = environment.stop_timeout or 60.0
