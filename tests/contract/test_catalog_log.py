"""What every catalog log must do: in this process, in one Redis, and in a Redis Cluster."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from service.catalog import CatalogLog, ItemChange, LoggedChange, MemoryCatalogLog
from service.catalog.change import Before
from service.catalog.log import START, Submitted, Undo
from service.catalog.redis_log import RedisCatalogLog
from service.connection import ConnectionLimits
from service.errors import CatalogError, CatalogMoved, CatalogUnavailable

# A busy machine is not what these tests are about.
PATIENT = ConnectionLimits(connect_timeout_ms=20_000, read_timeout_ms=20_000)
WHOLE = ItemChange(
    item_id="a/b c", title='quotes " and \\n', text="línea\nzwei", tags=("x", "y z"), group="g", available=False,
    removed=False, embedding=(0.5, -1e-9, 3.0),
)  # fmt: skip


@dataclass
class Backend:
    """Where the log is, and the way to open it for a model."""

    name: str
    closing: Callable[[Any], Any]
    url: str = ""

    def open(self, model_version: str = "m1", max_entries: int = 10_000) -> CatalogLog:
        if not self.url:
            return MemoryCatalogLog(max_entries)
        log: CatalogLog = self.closing(RedisCatalogLog(self.url, model_version, PATIENT, max_entries=max_entries))
        return log


@pytest.fixture(params=["memory", "redis", "cluster"])
def backend(request: pytest.FixtureRequest, closing: Callable[[Any], Any]) -> Backend:
    if request.param == "memory":
        return Backend("memory", closing)
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url) as client:
            client.flushall()
        return Backend("redis", closing, url)
    ports = request.getfixturevalue("cluster_ports")
    for port in ports:
        with redis.Redis(port=port) as client:
            client.flushall()
    return Backend("cluster", closing, f"redis+cluster://127.0.0.1:{ports[0]}")


@pytest.fixture
async def log(backend: Backend) -> CatalogLog:
    return backend.open()


def named(item_id: str, **members: object) -> ItemChange:
    return ItemChange(item_id=item_id, **members)  # type: ignore[arg-type]


async def test_a_log_begins_empty(log: CatalogLog) -> None:
    state = await log.state()
    assert list(state.changes) == []
    tail = await log.since(state.position)
    assert tail is not None
    assert (list(tail.changes), tail.position, tail.oldest_s) == ([], state.position, None)


async def test_what_is_submitted_is_read_in_order_and_whole(log: CatalogLog) -> None:
    await log.submit([LoggedChange(named("first", title="t"), (0, 0, 0))])
    begin = (await log.state()).position
    assert await log.submit([LoggedChange(WHOLE, (1, 22, 3)), LoggedChange(named("b", available=True))]) == [
        Submitted(stored=True, sid=(1, 22, 3)), Submitted(stored=True),
    ]  # fmt: skip
    await log.submit([LoggedChange(named("b", title=""))])
    tail = await log.since(begin)
    assert tail is not None
    assert list(tail.changes) == [
        LoggedChange(WHOLE, (1, 22, 3)), LoggedChange(named("b", available=True)), LoggedChange(named("b", title="")),
    ]  # fmt: skip
    assert tail.oldest_s is not None
    after = await log.since(tail.position)
    assert after is not None
    assert list(after.changes) == []


async def test_one_entry_may_change_an_item_twice(log: CatalogLog) -> None:
    await log.submit([LoggedChange(named("z"), (9, 9))])
    begin = (await log.state()).position
    twice = [LoggedChange(named("a", title="1")), LoggedChange(named("a", title="2", tags=()))]
    await log.submit(twice)
    tail = await log.since(begin)
    assert tail is not None
    assert list(tail.changes) == twice
    [state] = [change for change in (await log.state()).changes if change.change.item_id == "a"]
    assert state.change == named("a", title="2", tags=())


async def test_the_state_is_the_sum_of_all_changes(log: CatalogLog) -> None:
    await log.submit([LoggedChange(named("a", title="t", tags=("x",)), (1, 2))])
    await log.submit([LoggedChange(named("b", available=False))])
    await log.submit([LoggedChange(named("a", tags=(), removed=True))])
    state = {logged.change.item_id: logged for logged in (await log.state()).changes}
    assert state == {
        "a": LoggedChange(named("a", title="t", tags=(), removed=True), (1, 2)),
        "b": LoggedChange(named("b", available=False)),
    }


async def test_what_was_before_a_position_can_be_had_back(log: CatalogLog) -> None:
    """Of each member that was set since, the value at the position, or that the log knew none."""
    await log.submit([LoggedChange(named("a", title="t", tags=("x",)), (1, 2)), LoggedChange(named("b", group="g"))])
    at = (await log.state()).position
    await log.submit(
        [LoggedChange(named("a", title="u", available=False)), LoggedChange(named("c", title="c"), (1, 3))]
    )
    await log.submit([LoggedChange(named("a", title="v", tags=())), LoggedChange(named("c", title="d", text="!"))])
    await log.submit([LoggedChange(named("b", removed=True))])
    end = (await log.state()).position
    undo = await log.undo(at)
    assert undo is not None
    assert undo.position == end
    assert {before.change.item_id: before for before in undo.befores} == {
        "a": Before(named("a", title="t", tags=("x",)), frozenset({"available"})),
        "b": Before(named("b"), frozenset({"removed"})),
        "c": Before(named("c"), frozenset({"title", "text"}), is_new=True),
    }
    assert await log.undo(end) == Undo([], end)
    everything = await log.undo(START)
    assert everything is not None
    assert everything.position == end
    assert {before.change.item_id: before for before in everything.befores} == {
        "a": Before(named("a"), frozenset({"title", "tags", "available"}), is_new=True),
        "b": Before(named("b"), frozenset({"group", "removed"}), is_new=True),
        "c": Before(named("c"), frozenset({"title", "text"}), is_new=True),
    }


async def test_a_change_may_be_bound_to_the_end_of_the_log(log: CatalogLog) -> None:
    first = await log.append([named("a", title="1")], after=START)
    assert first == (await log.state()).position
    with pytest.raises(CatalogMoved, match="does not end at"):
        await log.append([named("a", title="2")], after=START)
    assert (await log.state()).position == first
    await log.append([named("a", title="2")], after=first)
    assert [logged.change.title for logged in (await log.state()).changes] == ["2"]


async def test_the_newest_entries_are_listed(log: CatalogLog) -> None:
    assert await log.newest(5) == []
    positions = [(await log.state()).position]
    for number in range(4):
        await log.submit([LoggedChange(named(f"{number}-{place}")) for place in range(number + 1)])
        positions.append((await log.state()).position)
    newest = await log.newest(3)
    assert [(entry.position, entry.num_changes) for entry in newest] == [
        (positions[4], 4), (positions[3], 3), (positions[2], 2),
    ]  # fmt: skip
    assert all(abs(entry.written_s - time.time()) < 60 for entry in newest)


async def test_undoing_many_entries_reads_all_of_them(log: CatalogLog) -> None:
    await log.submit([LoggedChange(named("a", title="before"))])
    at = (await log.state()).position
    for number in range(450):
        await log.submit([LoggedChange(named("a", title=str(number))), LoggedChange(named(f"b{number}", text="x"))])
    undo = await log.undo(at)
    assert undo is not None
    assert len(undo.befores) == 451
    assert undo.befores[0] == Before(named("a", title="before"))


async def test_a_position_that_never_was_is_not_there(log: CatalogLog) -> None:
    end = await log.append([named("a", title="t")], after=START)
    for position in (end.replace("-0", "-7"), "999999999999999-0"):
        assert await log.undo(position) is None
        assert await log.since(position) is None


async def test_what_is_no_longer_there_cannot_be_undone(backend: Backend) -> None:
    log = backend.open(max_entries=100)
    await log.submit([LoggedChange(named("a", title="0"))])
    begin = (await log.state()).position
    for number in range(400):
        await log.submit([LoggedChange(named("b", title=str(number)))])
    assert await log.undo(begin) is None
    newest = (await log.newest(50))[-1]
    undo = await log.undo(newest.position)
    assert undo is not None
    assert undo.befores == [Before(named("b", title="350"))]
    everything = await log.undo(START)
    assert everything is not None
    assert len(everything.befores) == 2


async def test_a_sid_is_given_away_once(log: CatalogLog) -> None:
    assert await log.submit([LoggedChange(named("a", title="a"), (1, 2))]) == [Submitted(stored=True, sid=(1, 2))]
    taken, own, free = await log.submit(
        [LoggedChange(named("b", title="b"), (1, 2)), LoggedChange(named("a", text="!"), (1, 2)),
         LoggedChange(named("c", title="c"), (1, 3))]
    )  # fmt: skip
    assert not taken.stored
    assert own == Submitted(stored=True, sid=(1, 2))
    assert free == Submitted(stored=True, sid=(1, 3))
    assert {logged.change.item_id for logged in (await log.state()).changes} == {"a", "c"}


async def test_an_item_keeps_its_first_sid_and_the_log_says_it_whole(log: CatalogLog) -> None:
    await log.submit([LoggedChange(named("z"), (9, 9))])
    begin = (await log.state()).position
    await log.submit([LoggedChange(named("a", title="first"), (1, 2))])
    assert await log.submit([LoggedChange(named("a", group="g"), (3, 4))]) == [Submitted(stored=True, sid=(1, 2))]
    tail = await log.since(begin)
    assert tail is not None
    # Whoever reads the place for the first time learns what the item is, whatever was said of it before.
    assert tail.changes[-1] == LoggedChange(named("a", title="first", group="g"), (1, 2))
    assert await log.submit([LoggedChange(named("b", title="b"), (3, 4))]) == [Submitted(stored=True, sid=(3, 4))]


async def test_many_writers_at_once_never_share_a_sid(backend: Backend) -> None:
    logs = [backend.open()] * 4 if backend.name == "memory" else [backend.open() for _ in range(4)]
    wishes = [(writer, number) for number in range(25) for writer in range(4)]
    answers = await asyncio.gather(
        *(logs[writer].submit([LoggedChange(named(f"{writer}-{number}"), (number, 0))]) for writer, number in wishes)
    )
    stored = [number for (_, number), [answer] in zip(wishes, answers, strict=True) if answer.stored]
    assert sorted(stored) == list(range(25))


async def test_a_reader_that_missed_too_much_is_told_so(backend: Backend) -> None:
    log = backend.open(max_entries=100)
    await log.submit([LoggedChange(named("a", title="0"))])
    begin = (await log.state()).position
    for number in range(400):  # Redis trims whole nodes of its stream, of a hundred entries each
        await log.submit([LoggedChange(named("b", title=str(number)))])
    assert await log.since(begin) is None
    state = await log.state()
    assert {logged.change.item_id: logged.change.title for logged in state.changes} == {"a": "0", "b": "399"}
    tail = await log.since(state.position)
    assert tail is not None


async def test_a_reader_of_many_entries_gets_all_of_them(log: CatalogLog) -> None:
    await log.submit([LoggedChange(named("a"))])
    position = (await log.state()).position
    for number in range(450):
        await log.submit([LoggedChange(named("b", title=str(number)))])
    titles: list[str | None] = []
    while True:
        tail = await log.since(position)
        assert tail is not None
        if not tail.changes:
            break
        titles += [logged.change.title for logged in tail.changes]
        position = tail.position
    assert titles == [str(number) for number in range(450)]


@pytest.mark.parametrize("num_changes", [1, 1000])
async def test_entries_may_be_large(log: CatalogLog, num_changes: int) -> None:
    changes = [LoggedChange(named(f"item {number}", text="x" * 500), (number, 1)) for number in range(num_changes)]
    assert all(outcome.stored for outcome in await log.submit(changes))
    assert len((await log.state()).changes) == num_changes


async def test_a_sid_belongs_to_a_model(redis_url: str, closing: Callable[[Any], Any]) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    old, new = (closing(RedisCatalogLog(redis_url, version, PATIENT)) for version in ("m1", "m2"))
    await old.submit([LoggedChange(named("a", title="t"), (1, 2))])
    begin = (await new.state()).position
    assert list((await new.state()).changes) == [LoggedChange(named("a", title="t"), None)]
    # The place under the new model comes with what the item is, though the claim says nothing of it.
    assert await new.submit([LoggedChange(named("a"), (1, 2))]) == [Submitted(stored=True, sid=(1, 2))]
    seen_by_new, seen_by_old = await new.since(begin), await old.since(begin)
    assert seen_by_new is not None
    assert seen_by_old is not None
    assert list(seen_by_new.changes) == [LoggedChange(named("a", title="t"), (1, 2))]
    assert list(seen_by_old.changes) == [LoggedChange(named("a", title="t"), None)]


@pytest.mark.parametrize("members", [b"[1]", b"null", b"{", b'{"titel":"t"}', b'{"tags":3}'])
async def test_what_cannot_be_read_is_one_kind_of_error(
    members: bytes, redis_url: str, closing: Callable[[Any], Any]
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        log = closing(RedisCatalogLog(redis_url, "m1", PATIENT))
        at = await log.append([named("a", title="t")], after=START)
        client.xadd("{catalog}:log", {"1": b"a\nm1\n\n" + members})
        client.xadd("{catalog}:undo", {"1": b"a\n" + members})
    with pytest.raises(CatalogError, match="cannot be read"):
        await log.since(at)
    with pytest.raises(CatalogError, match="cannot be read"):
        await log.undo(at)


async def test_a_log_that_is_emptied_is_a_log_that_was_missed(redis_url: str, closing: Callable[[Any], Any]) -> None:
    log = closing(RedisCatalogLog(redis_url, "m1", PATIENT))
    await log.submit([LoggedChange(named("a"))])
    position = (await log.state()).position
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert await log.since(position) is None


async def test_nobody_there_is_an_error_of_its_own(closing: Callable[[Any], Any]) -> None:
    log = closing(RedisCatalogLog("redis://127.0.0.1:1", "m1"))
    with pytest.raises(CatalogUnavailable, match=r"catalog log at redis://127\.0\.0\.1:1 did not answer"):
        await log.state()


async def test_what_others_wrote_is_named(redis_url: str, closing: Callable[[Any], Any]) -> None:
    log = closing(RedisCatalogLog(redis_url, "m1", PATIENT))
    await log.submit([LoggedChange(named("a"))])
    position = (await log.state()).position
    with redis.Redis.from_url(redis_url) as client:
        entry = client.xadd("{catalog}:log", {"1": "b\nm1\n\n{]"})
        with pytest.raises(CatalogError, match="'b'"):
            await log.since(position)
        client.xdel("{catalog}:log", entry)
        client.xadd("{catalog}:log", {"1": "nothing"})
        with pytest.raises(CatalogError, match="damaged"):
            await log.since(position)
