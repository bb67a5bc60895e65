"""The waiting room: tenants in turn, each first come first served."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.features import Kind
from service.inference.waiting import WaitingRoom

Tenants = st.lists(st.sampled_from("abc"), max_size=25)
KINDS = (Kind(), Kind(beam_width=3), Kind("explain"))


@dataclass(eq=False)
class Waiter:
    tenant: str
    kind: Kind = KINDS[0]


@dataclass
class Room:
    """A room and who is in it, by coming."""

    room: WaitingRoom[Waiter] = field(default_factory=WaitingRoom)
    inside: list[Waiter] = field(default_factory=list)

    def add(self, tenant: str, kind: Kind = KINDS[0]) -> Waiter:
        waiter = Waiter(tenant, kind)
        self.room.add(waiter)
        self.inside.append(waiter)
        return waiter

    def let_go(self, places: list[int]) -> None:
        for place in places:
            if self.inside:
                gone = self.inside.pop(place % len(self.inside))
                self.room.discard(gone)
                self.room.discard(gone)  # a second time does no harm

    def serve(self) -> Waiter:
        waiter = self.room.next()
        self.room.discard(waiter)
        self.inside.remove(waiter)
        return waiter


def room_of(tenants: list[str], leaving: list[int]) -> Room:
    room = Room()
    for tenant in tenants:
        room.add(tenant)
    room.let_go(leaving)
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
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(KINDS)), max_size=25),
    st.lists(st.integers(0, 100), max_size=10),
    st.integers(0, 5),
    st.sampled_from("abcd"),
)
def test_those_ahead_are_those_that_are_served_before_a_newcomer(
    waiters: list[tuple[str, Kind]], leaving: list[int], num_served: int, tenant: str
) -> None:
    """So many of each kind, however they came and went."""
    room = room_of([], [])
    for name, kind in waiters:
        room.add(name, kind)
    room.let_go(leaving)
    for _ in range(min(num_served, len(room.inside))):
        room.serve()
    assert dict(room.room.num_of_kind) == Counter(waiter.kind for waiter in room.inside)
    ahead = dict(room.room.ahead(tenant))
    newcomer = room.add(tenant)
    in_turn = list(room.room)
    assert ahead == Counter(waiter.kind for waiter in in_turn[: in_turn.index(newcomer)])


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
