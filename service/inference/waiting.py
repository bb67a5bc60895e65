"""The waiting room: who waits for a run, and in what order they are served.

Requests of one tenant (an API key; without keys all are of one) are served in the order of their coming, tenants take
turns: whoever comes has a round, the one that is being served or the one after its own last, and rounds are served one
after another. So a tenant that sends more than its share waits behind itself alone, whatever else a run has to respect.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from service.inference.features import Kind


class Waiter(Protocol):
    """What waits."""

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    @property
    def kind(self) -> Kind:
        """Which others may share its run."""
        ...


WaiterT = TypeVar("WaiterT", bound=Waiter)


class WaitingRoom(Generic[WaiterT]):
    """Everybody who waits, with their rounds."""

    def __init__(self) -> None:
        self._rounds: dict[WaiterT, int] = {}
        """By coming."""
        self._last_rounds: dict[str, int] = {}
        """Of every tenant that has or had one not served yet."""
        self._served_round = 0
        self._newest_round = 0
        """Nobody waits in a later one."""
        self._num_of_kind: Counter[Kind] = Counter()
        """Of all who wait; kinds of which nobody waits are not in it."""

    def __len__(self) -> int:
        return len(self._rounds)

    def __iter__(self) -> Iterator[WaiterT]:
        """In the order of service: by round, and in a round by their coming."""
        return iter(sorted(self._rounds, key=self._rounds.__getitem__))

    def add(self, waiter: WaiterT) -> None:
        """Lets it in."""
        joined = self._next_round(waiter.tenant)
        self._newest_round = max(self._newest_round, joined) if self._rounds else joined
        self._rounds[waiter] = self._last_rounds[waiter.tenant] = joined
        self._num_of_kind[waiter.kind] += 1

    def discard(self, waiter: WaiterT) -> None:
        """Takes it out, if it is there."""
        if self._rounds.pop(waiter, None) is None:
            return
        self._num_of_kind[waiter.kind] -= 1
        if not self._num_of_kind[waiter.kind]:
            del self._num_of_kind[waiter.kind]

    @property
    def num_of_kind(self) -> Mapping[Kind, int]:
        """How many wait, by kind; until somebody comes or goes."""
        return self._num_of_kind

    def next(self) -> WaiterT:
        """Who is served next; its round is the one that newcomers may join."""
        waiter = min(self._rounds, key=self._rounds.__getitem__)
        self._served_round = max(self._served_round, self._rounds[waiter])
        if len(self._last_rounds) > len(self._rounds) + 16:  # those that went long ago
            self._last_rounds = {name: at for name, at in self._last_rounds.items() if at >= self._served_round}
        return waiter

    def ahead(self, tenant: str) -> Mapping[Kind, int]:
        """How many of each kind are served before one that this tenant would send now; until somebody comes or goes.

        Where nobody else has as many waiting, as where there is but one tenant, that is all who wait, and nobody needs
        to be looked at: every request asks.
        """
        joined = self._next_round(tenant)
        if joined >= self._newest_round:
            return self._num_of_kind
        return Counter([waiter.kind for waiter, at in self._rounds.items() if at <= joined])

    def displaced_by(self, tenant: str) -> WaiterT | None:
        """Who must leave a full room so that this tenant may wait there, too.

        The newest of the tenant that has most waiting; None: nobody has more than this tenant would have then.
        """
        counts: dict[str, int] = {}
        newest: dict[str, WaiterT] = {}
        for waiter in self._rounds:
            counts[waiter.tenant] = counts.get(waiter.tenant, 0) + 1
            newest[waiter.tenant] = waiter
        longest = max(counts, key=counts.__getitem__, default=tenant)
        if counts.get(longest, 0) <= counts.get(tenant, 0) + 1:
            return None
        return newest[longest]

    def _next_round(self, tenant: str) -> int:
        return max(self._served_round, self._last_rounds.get(tenant, -1) + 1)
