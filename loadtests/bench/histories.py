"""Histories for a bench, stored as users' own are: through the API."""

import random
import time
from collections.abc import Sequence

import httpx

from loadtests.bench.errors import BenchError


def store_histories(url: str, item_ids: Sequence[str], *, num_users: int, num_events: int, rng: random.Random) -> None:
    """`num_events` events a minute apart of each of `user-0`, `user-1`, ...

    Raises:
        BenchError: one was not stored.
    """
    now_s = time.time()
    with httpx.Client(base_url=url, timeout=30) as client:
        for user in range(num_users):
            events = [
                {
                    "event_id": f"seed-{number}",
                    "user_id": f"user-{user}",
                    "item_id": rng.choice(item_ids),
                    "timestamp": now_s - 60.0 * (num_events - number),
                }
                for number in range(num_events)
            ]
            answer = client.post("/v1/events", json={"events": events}).raise_for_status()
            if {result["status"] for result in answer.json()["results"]} != {"stored"}:
                raise BenchError(f"an event of the seed was not stored: {answer.text[:300]}")
