"""The waiting room: who waits for a run, and in what order they are served.

Requests of one tenant (an API key; without keys all are of one) are served in the order of their coming, tenants take
turns. So a tenant that sends more than its share waits behind itself alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Generic, Protocol, TypeVar


class Waiter(Protocol):
    """What waits."""

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    @property
    def submitted_s(self) -> float:
        """When it came."""
        ...


WaiterT = TypeVar("WaiterT", bound=Waiter)


@dataclass(slots=True, eq=False)
class WaitingRoom(Generic[WaiterT]):
    """A queue for every tenant, served in turn."""

    _queues: dict[str, dict[WaiterT, None]]

    def __init__(self) -> None:
        self._queues = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[WaiterT]:
        """In the order of service: the first of every tenant by their coming, then the second of every tenant, ..."""
        for round_of in zip_longest(*self._queues.values()):
            yield from sorted((one for one in round_of if one is not None), key=lambda one: one.submitted_s)

    def add(self, waiter: WaiterT) -> None:
        """Puts it at the end of its tenant's queue."""
        self._queues.setdefault(waiter.tenant, {})[waiter] = None

    def discard(self, waiter: WaiterT) -> None:
        """Takes it out, if it is there."""
        queue = self._queues.get(waiter.tenant, {})
        queue.pop(waiter, None)
        if not queue:
            self._queues.pop(waiter.tenant, None)

    def first(self) -> WaiterT:
        """Who is served next."""
        return next(iter(self))

    def num_ahead(self, tenant: str) -> int:
        """How many are served before one that this tenant would send now."""
        own = len(self._queues.get(tenant, {}))
        return sum(min(len(queue), own + 1) for name, queue in self._queues.items() if name != tenant) + own

    def displaced_by(self, tenant: str) -> WaiterT | None:
        """Who must leave a full room so that this tenant may wait there, too.

        The newest of the tenant that has most waiting; None: nobody has more than this tenant would have then.
        """
        own = len(self._queues.get(tenant, {}))
        longest = max(self._queues.values(), key=len, default={})
        if len(longest) <= own + 1:
            return None
        return next(islice(reversed(longest), 1))
