"""What was shown: kept for a while, so that a next slate can leave it out, logged, and written behind the answer.

Record, little endian: 16 bytes recommendation id | 16 bytes id that it continued (zeros: none) | u8 number of items |
u64 item key for each. A user's records stand one after another, newest last, and are cut at the front.

Legend: S item keys.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.domain import Impression, item_key
from service.errors import HistoryUnavailable
from service.history.store import HistoryStore, ShownSlate
from service.metrics import Metrics

_log = logging.getLogger(__name__)
ID_BYTES = 16
HEADER_BYTES = 2 * ID_BYTES + 1
MAX_ITEMS = 255
_NONE = bytes(ID_BYTES)
_LONGEST_MS = 60_000
"""That a request takes: the longest deadline."""


def encode_shown(slate: ShownSlate) -> bytes:
    """One record; of more than 255 items the first."""
    keys = np.array(slate.item_keys[:MAX_ITEMS], dtype="<u8")
    continued = _NONE if slate.continued_from is None else bytes.fromhex(slate.continued_from)
    return bytes.fromhex(slate.recommendation_id) + continued + bytes([len(keys)]) + keys.tobytes()


def shown_of(impression: Impression) -> ShownSlate:
    """What is kept of an impression for the user's next slate."""
    return ShownSlate(
        user_id=impression.user_id,
        recommendation_id=impression.recommendation_id,
        continued_from=impression.continued_from,
        item_keys=tuple(item_key(item.item_id) for item in impression.slate.items),
    )


def decode_shown(user_id: str, packed: bytes) -> tuple[ShownSlate, ...]:
    """Oldest first. ValueError when the bytes do not hold whole records."""
    slates, place = [], 0
    while place < len(packed):
        first = place + HEADER_BYTES
        end = first + 8 * packed[first - 1] if first <= len(packed) else first
        if end > len(packed):
            raise ValueError(f"packed shown slates of {len(packed)} bytes do not hold whole records")
        continued = packed[place + ID_BYTES : first - 1]
        slates.append(
            ShownSlate(
                user_id=user_id,
                recommendation_id=packed[place : place + ID_BYTES].hex(),
                continued_from=None if continued == _NONE else continued.hex(),
                item_keys=tuple(np.frombuffer(packed[first:end], dtype="<u8").tolist()),
            )
        )
        place = end
    return tuple(slates)


def shown_until(slates: Sequence[ShownSlate], recommendation_id: str) -> npt.NDArray[np.uint64] | None:
    """Item keys [S] of a slate and of those that it continued, as far as they are kept; None: it is not kept."""
    by_id = {slate.recommendation_id: slate for slate in slates}
    if recommendation_id not in by_id:
        return None
    keys: list[int] = []
    slate: ShownSlate | None = by_id[recommendation_id]
    while slate is not None:
        keys += slate.item_keys
        # Taken out, so that no circle of ids can hold us here.
        del by_id[slate.recommendation_id]
        slate = by_id.get(slate.continued_from or "")
    return np.array(keys, dtype=np.uint64)


class ShownRecorder:
    """Writes what was shown behind the answers: many slates in one round trip, and none waits for it.

    What the store does not take, and what comes while too much waits, is lost and counted: the next slate of that user
    cannot leave it out, and says so, and the event log lacks it.
    """

    def __init__(self, store: HistoryStore, metrics: Metrics, *, queue_limit: int = 4096) -> None:
        """Starts the writer on the running event loop; `queue_limit`: most slates that wait."""
        self._store = store
        self._metrics = metrics
        self._queue_limit = queue_limit
        self._waiting: deque[Impression] = deque()
        self._forgotten_ms: OrderedDict[str, int] = OrderedDict()
        """When users were forgotten of whom a request that began before may still be under way; oldest first."""
        self._arrived = asyncio.Event()
        self._closing = False
        self._writing: asyncio.Task[int] | None = None
        self._writer = asyncio.create_task(self._write(), name="shown recorder")

    def add(self, impression: Impression) -> None:
        """Takes a slate that is about to be answered; returns at once.

        One that was begun before its user was forgotten is dropped: it was made of what is to be forgotten.
        """
        if impression.timestamp_ms <= self._forgotten_ms.get(impression.user_id, -1):
            return
        if len(self._waiting) >= self._queue_limit or self._writer.done():
            self._metrics.history_errors.labels("remember").inc()
            return
        self._waiting.append(impression)
        self._arrived.set()

    async def written(self, user_id: str) -> None:
        """Waits until what was shown to a user here is in the store, or lost: the next request may overtake a write."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        while not self._writer.done() and any(impression.user_id == user_id for impression in self._waiting):
            await asyncio.sleep(0)  # the writer takes all that waits, as soon as it is its turn
            if self._writing is not None:
                await asyncio.wait([self._writing])

    async def forget(self, user_id: str) -> None:
        """Drops what waits of a user and what is being made, and waits for a write under way: what follows is not
        undone by it."""
        now_ms = time.time_ns() // 1_000_000
        self._forgotten_ms.pop(user_id, None)
        self._forgotten_ms[user_id] = now_ms
        while next(iter(self._forgotten_ms.values())) < now_ms - _LONGEST_MS:
            self._forgotten_ms.popitem(last=False)
        kept = [impression for impression in self._waiting if impression.user_id != user_id]
        self._waiting.clear()
        self._waiting.extend(kept)
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def close(self) -> None:
        """Writes what waits, once, and ends."""
        self._closing = True
        self._arrived.set()
        await asyncio.gather(self._writer, return_exceptions=True)

    async def _write(self) -> None:
        while not (self._closing and not self._waiting):
            await self._arrived.wait()
            self._arrived.clear()
            impressions = list(self._waiting)
            self._waiting.clear()
            if not impressions:
                continue
            self._writing = writing = asyncio.create_task(self._store.remember(impressions))
            try:
                num_unlogged = await writing
            except HistoryUnavailable as error:
                self._metrics.history_errors.labels("remember").inc(len(impressions))
                _log.warning("%d shown slates are not remembered: %s", len(impressions), error)
                continue
            except Exception:  # noqa: BLE001 - of a task that nobody waits for; the next write may go well
                self._metrics.history_errors.labels("remember").inc(len(impressions))
                _log.exception("%d shown slates are not remembered", len(impressions))
                continue
            if num_unlogged:
                self._metrics.impressions_unlogged.inc(num_unlogged)
