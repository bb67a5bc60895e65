"""Users of a running service: they ask for slates, act on what they are shown, and look at their history.

    locust -f loadtests/locustfile.py --headless --users 20 --run-time 30s --host http://127.0.0.1:8000

Users come by Zipf's law out of `--population`; items are those that slates bring, or the ids in `--items FILE`, one a
line. An answer that is no slate, a problem, or an item that the user has already acted on counts as a failure.
Names of requests are the `route` labels of the service's metrics, so that counts can be compared.

A closed loop: a user waits for the answer before the next request, so latencies under overload look better than they
are.
"""

import argparse
import random
import time
import uuid
from collections import defaultdict, deque
from itertools import accumulate
from pathlib import Path
from typing import Any

from locust import FastHttpUser, events, task
from locust.env import Environment

RECOMMEND = "/v1/recommend"
EVENTS = "/v1/events"
HISTORY = "/v1/users/{user_id}/history"
VERSION = "/version"
_FINISH_S = 10.0
"""At the end every user may finish its request, so that the service has counted nothing that locust has not."""
_REMEMBERED_ACTS = 50
"""Per user; a service forgets what was seen long ago."""

_acts: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=_REMEMBERED_ACTS))
"""Items whose events were acknowledged, by user: shared by all who play that user."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: argparse.ArgumentParser, **_: Any) -> None:
    """Options of this file."""
    parser.add_argument("--population", type=int, default=10_000, help="Number of distinct users")
    parser.add_argument("--zipf", type=float, default=1.0, help="Exponent of the users' distribution; 0: uniform")
    parser.add_argument("--items", default="", help="File of item ids, one a line; left out: items of slates")
    parser.add_argument("--pause", type=float, default=0.05, help="Mean seconds between two requests of a user")
    parser.add_argument("--seed", type=int, default=0, help="Of everything random but event ids")


@events.init.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Environment, **_: Any) -> None:
    """Reads what all users share."""
    options = environment.parsed_options
    if options is None:
        return
    environment.stop_timeout = environment.stop_timeout or _FINISH_S
    random.seed(options.seed)
    _acts.clear()
    Visitor.weights = list(accumulate((rank + 1) ** -options.zipf for rank in range(options.population)))
    Visitor.item_ids = Path(options.items).read_text(encoding="utf-8").split("\n") if options.items else []
    Visitor.item_ids = [item_id for item_id in Visitor.item_ids if item_id]
    Visitor.mean_pause_s = options.pause


class Visitor(FastHttpUser):
    """Plays another user at every request."""

    weights: list[float] = [1.0]  # noqa: RUF012 - set once, before the first user
    item_ids: list[str] = []  # noqa: RUF012
    mean_pause_s = 0.05
    connection_timeout = 5.0
    network_timeout = 10.0

    def wait_time(self) -> float:
        """Seconds until the next request."""
        return random.expovariate(1 / self.mean_pause_s) if self.mean_pause_s > 0 else 0.0

    def on_start(self) -> None:
        """Learns what the service offers."""
        version = self._ask("GET", VERSION, VERSION)
        self.slate_size = version["slate_size"] if version else 1
        self.actions = version["actions"] if version else [None]
        self.shown: list[str] = []

    @task(10)
    def recommend(self) -> None:
        """Asks for a slate."""
        user_id = self._user_id()
        acted_before = set(_acts[user_id])
        with self.client.request(
            "POST",
            RECOMMEND,
            name=RECOMMEND,
            json={"user_id": user_id, "slate_size": self.slate_size},
            catch_response=True,
        ) as response:
            slate = _body(response)
            if slate is None:
                return
            item_ids = [item["item_id"] for item in slate["items"]]
            if len(set(item_ids)) < len(item_ids):
                response.failure("an item stands twice in the slate")
            elif not item_ids:
                response.failure(f"an empty slate: {slate['reason']}")
            elif not slate["degraded"] and not acted_before.isdisjoint(item_ids):
                response.failure("an item that the user has acted on is recommended again")
            self.shown = item_ids or self.shown

    @task(5)
    def act(self) -> None:
        """Sends an event on an item of the last slate or of the file."""
        choices = self.item_ids or self.shown
        if not choices:
            return
        event = {
            "event_id": uuid.uuid4().hex,
            "user_id": self._user_id(),
            "item_id": random.choice(choices),
            "action": random.choice(self.actions),
            "timestamp": time.time(),
        }
        with self.client.request(
            "POST", EVENTS, name=EVENTS, json={"events": [event]}, catch_response=True
        ) as response:
            answer = _body(response)
            if answer is None:
                return
            result = answer["results"][0]
            if result["status"] == "stored":
                _acts[event["user_id"]].append(event["item_id"])
            else:
                response.failure(f"{result['status']}: {(result.get('problem') or {}).get('title')}")

    @task(1)
    def look_back(self) -> None:
        """Reads a history."""
        self._ask("GET", HISTORY.format(user_id=self._user_id()), HISTORY)

    def _user_id(self) -> str:
        rank = random.choices(range(len(self.weights)), cum_weights=self.weights)[0]
        return f"visitor-{rank}"

    def _ask(self, method: str, path: str, name: str) -> dict[str, Any] | None:
        with self.client.request(method, path, name=name, catch_response=True) as response:
            return _body(response)


def _body(response: Any) -> dict[str, Any] | None:
    """The JSON object of a 200; None and a failure, with the problem's type, of anything else."""
    if response.status_code == 0:
        response.failure(response.error or "no answer")
        return None
    is_problem = (response.headers.get("content-type") or "").startswith("application/problem+json")
    try:
        body: dict[str, Any] = response.json()
    except ValueError:
        response.failure(f"{response.status_code} without JSON")
        return None
    if response.status_code == 200 and not is_problem:
        return body
    response.failure(f"{response.status_code} {body.get('type')}: {body.get('detail')}")
    return None
