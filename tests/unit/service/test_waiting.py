"""The waiting room: tenants in turn, each first come first served."""

from dataclasses import dataclass, field
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.waiting import WaitingRoom

Tenants = st.lists(st.sampled_from("abc"), max_size=25)


@dataclass(eq=False)
class Waiter:
    tenant: str
    submitted_s: float


@dataclass
class Room:
    """A room and who is in it, by coming."""

    room: WaitingRoom[Waiter] = field(default_factory=WaitingRoom)
    inside: list[Waiter] = field(default_factory=list)
    clock: "count[int]" = field(default_factory=count)

    def add(self, tenant: str) -> Waiter:
        waiter = Waiter(tenant, float(next(self.clock)))
        self.room.add(waiter)
        self.inside.append(waiter)
        return waiter

    def place(self, waiter: Waiter) -> tuple[int, float]:
        """Of its tenant how many came before it, then when it came: the order of service, spelled out."""
        own = [one for one in self.inside if one.tenant == waiter.tenant]
        return own.index(waiter), waiter.submitted_s


def room_of(tenants: list[str], leaving: list[int]) -> Room:
    room = Room()
    for tenant in tenants:
        room.add(tenant)
    for place in leaving:
        if room.inside:
            gone = room.inside.pop(place % len(room.inside))
            room.room.discard(gone)
            room.room.discard(gone)  # a second time does no harm
    return room


@settings(deadline=None)
@given(Tenants, st.lists(st.integers(0, 100), max_size=10))
def test_service_is_in_turn_and_by_coming(tenants: list[str], leaving: list[int]) -> None:
    room = room_of(tenants, leaving)
    assert list(room.room) == sorted(room.inside, key=room.place)
    assert len(room.room) == len(room.inside)
    if room.inside:
        assert room.room.first() is next(iter(room.room))


@settings(deadline=None)
@given(Tenants, st.lists(st.integers(0, 100), max_size=10), st.sampled_from("abcd"))
def test_those_ahead_are_those_that_are_served_before_a_newcomer(
    tenants: list[str], leaving: list[int], tenant: str
) -> None:
    room = room_of(tenants, leaving)
    num_ahead = room.room.num_ahead(tenant)
    newcomer = room.add(tenant)
    assert list(room.room).index(newcomer) == num_ahead


@settings(deadline=None)
@given(Tenants, st.sampled_from("abcd"))
def test_only_who_has_more_than_the_newcomer_would_have_makes_room(tenants: list[str], tenant: str) -> None:
    room = room_of(tenants, [])
    counts = {name: sum(one.tenant == name for one in room.inside) for name in "abcd"}
    displaced = room.room.displaced_by(tenant)
    if displaced is None:
        assert max(counts.values()) <= counts[tenant] + 1
    else:
        assert counts[displaced.tenant] == max(counts.values()) > counts[tenant] + 1
        assert displaced is [one for one in room.inside if one.tenant == displaced.tenant][-1]
