"""The waiting room: tenants in turn, each first come first served."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.waiting import WaitingRoom

Tenants = st.lists(st.sampled_from("abc"), max_size=25)


@dataclass(eq=False)
class Waiter:
    tenant: str


@dataclass
class Room:
    """A room and who is in it, by coming."""

    room: WaitingRoom[Waiter] = field(default_factory=WaitingRoom)
    inside: list[Waiter] = field(default_factory=list)

    def add(self, tenant: str) -> Waiter:
        waiter = Waiter(tenant)
        self.room.add(waiter)
        self.inside.append(waiter)
        return waiter

    def serve(self) -> Waiter:
        waiter = self.room.next()
        self.room.discard(waiter)
        self.inside.remove(waiter)
        return waiter


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
@given(Tenants)
def test_service_is_in_turn_and_by_coming(tenants: list[str]) -> None:
    """The first of every tenant by their coming, then the second of every tenant, and so on."""
    room = room_of(tenants, [])
    own = [tenants[:place].count(tenant) for place, tenant in enumerate(tenants)]
    expected = [room.inside[place] for place in sorted(range(len(tenants)), key=lambda place: (own[place], place))]
    assert list(room.room) == expected
    assert [room.serve() for _ in tenants] == expected
    assert len(room.room) == 0


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 30), st.integers(1, 5))
def test_whoever_comes_is_next_but_for_those_of_the_round(num_flood: int, num_served: int, num_calm: int) -> None:
    """However much the flood has sent and been served already, each newcomer of another tenant waits for one of it."""
    room = room_of(["flood"] * num_flood, [])
    for _ in range(min(num_served, num_flood - 1)):
        room.serve()
    calm = [room.add(f"calm {number}") for number in range(num_calm)]
    served = [room.serve() for _ in range(num_calm + 1)]
    assert set(calm) <= set(served)


def test_whoever_is_passed_over_is_next_and_stays_next() -> None:
    """A run may have to take others first, for what it has to respect."""
    room = room_of(["flood"] * 50, [])
    room.serve()
    calm = room.add("calm")
    for _ in range(3):
        assert room.room.next() is calm
        room.room.discard(room.inside.pop(0))
        room.add("flood")


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
