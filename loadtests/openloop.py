"""Open-loop load: requests come on schedule, whether or not those before them are answered.

    locust -f loadtests/openloop.py --headless --users 1 --host http://127.0.0.1:8000 --rate 200 --seconds 60

What `oneslate loadtest` runs. Latencies count from the intended send time, so that a service that stalls cannot hide it
by holding up the generator. The run fails if the generator itself was late. Users and items come by Zipf's law;
the mix is slates, events, histories and changes of items. A change names no member: it goes the whole way of one, and
wherever the run ends, what is in service is what it was.
"""

import argparse
import json
import os
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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
_TOO_MANY_REQUESTS: Final = 429
_FORBIDDEN: Final = 403


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: argparse.ArgumentParser, **_: Any) -> None:
    """Options of this file."""
    parser.add_argument("--rate", type=float, default=50.0, help="Requests a second, on average")
    parser.add_argument("--seconds", type=float, default=30.0, help="How long they come")
    parser.add_argument("--shape", choices=["poisson", "bursts"], default="poisson", help="How they come")
    parser.add_argument("--population", type=int, default=10_000, help="Number of distinct users")
    parser.add_argument("--zipf", type=float, default=1.0, help="Exponent of users' and items' distribution")
    parser.add_argument("--deadline", type=float, default=500.0, help="Milliseconds within which a slate is good")
    parser.add_argument("--under-way", type=int, default=_SPREAD, help="Requests at once, at most; others fail unsent")
    parser.add_argument("--max-lag", type=float, default=MAX_LAG_MS, help="Milliseconds the run may itself be late")
    parser.add_argument("--outcome", default="", help="File for what came of it, as JSON")
    parser.add_argument("--seed", type=int, default=0, help="Of the schedule and of everything that is chosen")


class Outcome:
    """What came of a run."""

    def __init__(self) -> None:
        self.num_slates = 0
        """Slates that were to be asked for, whatever became of them."""
        self.sources: Counter[str] = Counter()
        """Slates by source and reason."""
        self.good = 0
        self.refused = 0
        """Requests of any kind that were told when to come again: what overload is to look like."""
        self.failures: Counter[str] = Counter()
        """All other requests without what was asked for, by reason."""
        self.changes_items = True
        self.latencies_ms: list[float] = []
        """Of slates that were answered, from the intended send time."""
        self.lags_ms: list[float] = []

    @property
    def lag_p99_ms(self) -> float:
        """How late the generator was: p99, of few requests the second largest, since once is by chance."""
        lags_ms = sorted(self.lags_ms)
        return lags_ms[max(0, min(int(len(lags_ms) * 0.99), len(lags_ms) - 2))] if lags_ms else 0.0


class NoServiceError(Exception):
    """Nothing that answers as a service does."""


class Arrivals(FastHttpUser):
    """The one user of a run: sends what is due."""

    fixed_count = 1
    connection_timeout = 5.0
    network_timeout = 30.0
    concurrency = _SPREAD

    @task
    def run_schedule(self) -> None:
        """Learns what the service offers, sends everything, waits for the last answer, and ends the run."""
        options = self.environment.parsed_options
        assert options is not None
        self.options = options
        with self._or_ended():
            self._learn()
            self._run_schedule()
        self._end()

    def _learn(self) -> None:
        options = self.options
        self.client.base_url = (self.client.base_url or "").rstrip("/")
        self.rng = random.Random(options.seed)
        self.outcome = Outcome()
        self.weights = list(accumulate((rank + 1) ** -options.zipf for rank in range(options.population)))
        token = os.environ.get("ONESLATE_KEY", "")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.shown: list[str] = []
        with self._request("GET", VERSION, VERSION, None) as response:
            version = self._answer(response)
            if version is None:
                said = next(iter(self.outcome.failures), response.status_code)
                raise NoServiceError(f"{self.client.base_url}{VERSION} does not say what it offers: {said}")
            self.slate_size = version["slate_size"]
            self.actions = version["actions"]

    def _run_schedule(self) -> None:
        options, pool = self.options, Pool(self.options.under_way)
        names = random.Random(options.seed + 1).choices(list(MIX), list(MIX.values()), k=1_000_003)
        began_s = time.perf_counter()
        for number, at_s in enumerate(arrivals(options.shape, options.rate, options.seconds, self.rng)):
            intended_s = began_s + at_s
            if (rest_s := intended_s - time.perf_counter()) > 0:
                gevent.sleep(rest_s)
            self.outcome.lags_ms.append((time.perf_counter() - intended_s) * 1000)
            name = names[number % len(names)]
            self.outcome.num_slates += name == "recommend"
            if pool.full():
                # To wait for room would make the generator late for what the service is to blame for.
                self._fire_failure("unsent", name, f"not sent: {options.under_way} under way")
            else:
                pool.spawn(self._send, name, intended_s)
        pool.join(timeout=self.network_timeout)
        for _ in range(len(pool)):
            self._fire_failure("unanswered", "", f"not answered {self.network_timeout:g} s after the end")
        self._report()

    def _send(self, name: str, intended_s: float) -> None:
        try:
            getattr(self, f"_{name}")(intended_s)
        except Exception as error:  # noqa: BLE001 - an answer that is not what the API says, in whatever way
            self._fire_failure("unreadable", name, f"{type(error).__name__}: {error}")

    @contextmanager
    def _or_ended(self) -> Iterator[None]:
        """What goes wrong inside ends the run with one line; Locust alone would log it and go on for ever."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is
            words = str(error) if isinstance(error, NoServiceError) else f"{type(error).__name__}: {error}"
            trouble = " ".join(words.split())
            sys.stderr.write(f"{trouble}\n")
            self._write({"trouble": trouble})
            self.environment.process_exit_code = 1
            self._end()

    def _end(self) -> None:
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
            if (slate := self._answer(response)) is None:
                return
            self.outcome.latencies_ms.append(latency_ms)
            self.outcome.sources[f"{slate['source']}, {slate['reason'] or 'no reason'}"] += 1
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
            self._result(response, self._answer(response))

    def _look_back(self, intended_s: float) -> None:
        path = HISTORY.format(user_id=self._user_id())
        with self._request("GET", path, HISTORY, intended_s) as response:
            self._answer(response)

    def _change_item(self, intended_s: float) -> None:
        """A change of an item that is shown, in which no member changes: the log has an entry more, as by any other
        change, and what is in service stays what it is."""
        if not self.shown or not self.outcome.changes_items:
            return
        body = {"items": [{"item_id": self.rng.choice(self.shown)}]}
        with self._request("POST", ITEMS, ITEMS, intended_s, json=body) as response:
            if response.status_code == _FORBIDDEN:
                # Most keys may not, and slates can be measured without.
                response.success()
                if self.outcome.changes_items:
                    self.outcome.changes_items = False
                    sys.stderr.write("no items are changed: the key lacks the scope `items`\n")
                return
            self._result(response, self._answer(response))

    def _request(self, method: str, path: str, name: str, intended_s: float | None, **kwargs: Any) -> Any:
        response = self.client.request(method, path, name=name, headers=self.headers, catch_response=True, **kwargs)
        return _Timed(response, intended_s)

    def _answer(self, response: Any) -> dict[str, Any] | None:
        """The members of a 200; None, counted as refused or failed, of all else."""
        status = response.status_code
        is_told = bool((response.headers or {}).get("retry-after"))
        if status == _TOO_MANY_REQUESTS and is_told:
            self.outcome.refused += 1
            response.success()
            return None
        try:
            members = response.json()
        except (ValueError, TypeError):
            members = None
        if status == 200 and isinstance(members, dict):
            return members
        if not status:
            reason = f"no answer: {response.error or 'the connection broke'}"
        elif not isinstance(members, dict):
            reason = f"{status} without JSON"
        else:
            reason = f"{status} {members.get('type')}" + " without Retry-After" * (status == _TOO_MANY_REQUESTS)
        self._fail(response, reason)
        return None

    def _result(self, response: Any, answer: dict[str, Any] | None) -> None:
        """Of the one event or change that was sent."""
        if answer is not None and (result := answer["results"][0])["status"] in {"duplicate", "refused"}:
            self._fail(response, f"{result['status']} {(result.get('problem') or {}).get('type')}")

    def _fail(self, response: Any, reason: str) -> None:
        response.failure(reason)
        self.outcome.failures[reason] += 1

    def _fire_failure(self, kind: str, name: str, reason: str) -> None:
        """One that has no answer of which Locust could learn it."""
        self.outcome.failures[reason] += 1
        events.request.fire(  # type: ignore[no-untyped-call]
            request_type=kind, name=name, response_time=0.0, response_length=0, context={},
            exception=RuntimeError(reason),
        )  # fmt: skip

    def _user_id(self) -> str:
        return f"visitor-{self.rng.choices(range(len(self.weights)), cum_weights=self.weights)[0]}"

    def _rank(self, number: int) -> int:
        return self.rng.choices(range(number), [(rank + 1) ** -self.options.zipf for rank in range(number)])[0]

    def _report(self) -> None:
        outcome, lag_p99_ms = self.outcome, self.outcome.lag_p99_ms
        self._write(
            {
                "num_slates": outcome.num_slates,
                "sources": outcome.sources,
                "good": outcome.good,
                "refused": outcome.refused,
                "failures": outcome.failures,
                "changes_items": outcome.changes_items,
                "latencies_ms": sorted(outcome.latencies_ms),
                "lag_p99_ms": lag_p99_ms,
            }
        )
        if lag_p99_ms > self.options.max_lag:
            self.environment.process_exit_code = 3
            events.request.fire(  # type: ignore[no-untyped-call]
                request_type="generator", name="lag", response_time=lag_p99_ms, response_length=0, context={},
                exception=RuntimeError(f"the generator itself was {lag_p99_ms:.1f} ms late (p99)"),
            )  # fmt: skip

    def _write(self, members: dict[str, Any]) -> None:
        if self.options.outcome:
            Path(self.options.outcome).write_text(json.dumps(members), encoding="utf-8")


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
