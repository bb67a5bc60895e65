"""A primary of a Redis Cluster is killed while events come in: its replica takes over; nothing is lost or doubled."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import redis
from measured import Figures
from redis_cluster import cluster

from service.connection import ConnectionLimits, RedisConnection
from service.domain import Event, item_key
from service.errors import HistoryUnavailable
from service.eventlog.collector import Collector, CollectorMetrics
from service.eventlog.dataset import LogDataset
from service.eventlog.streams import LogStreams
from service.history import HistoryLimits
from service.history.redis_store import RedisHistoryStore

NOW_MS = 1_790_000_000_000
NUM_USERS = 48
TIMEOUTS = ConnectionLimits(connect_timeout_ms=500, read_timeout_ms=500)


class Sender:
    """Sends each event again until it is acknowledged."""

    def __init__(self, store: RedisHistoryStore) -> None:
        self._store = store
        self.acknowledged: list[Event] = []
        self.refused_s: list[float] = []
        """When."""
        self.is_stopping = False

    async def run(self, user: str, pause_s: float) -> None:
        number = 0
        while not self.is_stopping:
            event = Event(
                user_id=user, item_id=f"item-{number}", action="view", timestamp_ms=NOW_MS + number,
                event_id=f"{user}-{number}",
            )  # fmt: skip
            while True:
                try:
                    [outcome] = await self._store.append([event], NOW_MS)
                except HistoryUnavailable:
                    self.refused_s.append(time.monotonic())
                    await asyncio.sleep(0.05)
                else:
                    assert outcome.status in {"stored", "duplicate"}
                    self.acknowledged.append(event)
                    break
            number += 1
            await asyncio.sleep(pause_s)


async def fail_over(
    ports: list[int], folder: Path, seconds: float
) -> tuple[Sender, float, dict[str, list[int]], list[str]]:
    """What was sent, when the primary died, what is in the histories, and what is in Parquet."""
    url = f"redis+cluster://127.0.0.1:{ports[0]}"
    store = RedisHistoryStore(url, HistoryLimits(num_entries=10_000, log_rows=10_000_000), TIMEOUTS)
    sender = Sender(store)
    tasks = [asyncio.create_task(sender.run(f"user-{number}", 0.02)) for number in range(NUM_USERS)]
    await asyncio.sleep(1)
    with redis.Redis(port=ports[1]) as client:
        pid = client.info("server")["process_id"]
    killed_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while len(sender.refused_s) == 0 or time.monotonic() - sender.refused_s[-1] < 2:
        await asyncio.sleep(0.1)
        assert time.monotonic() - killed_s < 60, "the cluster does not come back"
    await asyncio.sleep(seconds)
    sender.is_stopping = True
    await asyncio.gather(*tasks)
    histories = {}
    for number in range(NUM_USERS):
        entries_N = (await store.read(f"user-{number}", NOW_MS)).entries_N
        histories[f"user-{number}"] = entries_N["item_key"].tolist()
    await store.close()
    connection = RedisConnection(url, TIMEOUTS)
    with LogDataset.opened(folder) as dataset:
        await Collector(LogStreams(connection, dataset.collector), dataset, CollectorMetrics()).drain()
    await connection.close()
    rows = [event_id for file in (folder / "events").glob("*") for event_id in _event_ids(file)]
    return sender, killed_s, histories, rows


def _event_ids(file: Path) -> list[str]:
    ids: list[str] = pq.read_table(file, columns=["event_id"])["event_id"].to_pylist()
    return ids


def test_no_acknowledged_event_is_lost_when_a_replica_takes_over(
    tmp_path: Path, scaled: Callable[[float, float], float], figures: Figures
) -> None:
    with cluster(tmp_path / "cluster", num_nodes=3, has_replicas=True, node_timeout_ms=1500) as ports:
        sender, killed_s, histories, rows = asyncio.run(fail_over(ports, tmp_path / "log", scaled(0.5, 20)))
    acknowledged: dict[str, list[int]] = {user: [] for user in histories}
    for event in sender.acknowledged:
        acknowledged[event.user_id].append(item_key(event.item_id))
    assert min(map(len, acknowledged.values())) > 20
    assert histories == acknowledged
    assert Counter(rows) == Counter(event.event_id for event in sender.acknowledged)
    name = "Redis Cluster of 3 with replicas, one primary killed"
    figures(name, "events", len(sender.acknowledged), "acknowledged, each there once in history and in Parquet")
    figures(name, "events", len(sender.refused_s), "times refused")
    figures(name, "store", sender.refused_s[-1] - killed_s, "s until the last refusal")
