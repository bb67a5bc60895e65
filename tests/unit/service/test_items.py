"""Changes of items: what is found is free again unless it was claimed, and nothing in the log stops its reader."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from service.bundle.item_encoder import unit_rows
from service.catalog import CatalogSnapshot, ItemChange, LiveCatalog, LoggedChange, MemoryCatalogLog, NewItemEncoder
from service.catalog.log import LogState, LogTail, Submitted
from service.domain import Item
from service.errors import CatalogUnavailable
from service.inference.fake_runner import fake_encoder, fake_manifest
from service.items import CatalogFollower, ItemWriter
from service.metrics import Metrics

MAX_BRANCH = fake_manifest().max_branch
FIRST = ItemChange(item_id="x", title="t")


def with_vectors(encoder: NewItemEncoder) -> tuple[CatalogSnapshot, NewItemEncoder]:
    """A catalog of a model with item vectors and embeddings."""
    rng = np.random.default_rng(0)
    width = encoder.encoder.width
    items = [Item(item_id=f"item-{number}") for number in range(20)]
    sids_NL = np.stack(np.unravel_index(np.arange(20) * 7, (32, 32, 32)), 1).astype(np.int32)
    vectors_ND = unit_rows(rng.normal(size=(20, 3)))
    embeddings_NE = rng.normal(size=(20, width)).astype(np.float32)
    snapshot = CatalogSnapshot.build(items, sids_NL, vectors_ND=vectors_ND, embeddings_NE=embeddings_NE)
    projection_DE = rng.normal(size=(3, width)).astype(np.float32)
    return snapshot, replace(encoder, projection_DE=projection_DE, centre_E=np.zeros(width, np.float32))


class Faulty(MemoryCatalogLog):
    """Fails as often as it is told to."""

    num_failures = 0
    state_fails = False
    """Once."""

    async def submit(self, changes: Sequence[LoggedChange]) -> list[Submitted]:
        if self.num_failures:
            self.num_failures -= 1
            raise CatalogUnavailable("gone")
        return await super().submit(changes)

    async def state(self) -> LogState:
        if self.state_fails:
            self.state_fails = False
            raise CatalogUnavailable("gone")
        return await super().state()


class Kit:
    """A writer and a follower over one log."""

    def __init__(self, log: MemoryCatalogLog | None = None, encoder: NewItemEncoder | None = None) -> None:
        self.log = log or Faulty()
        snapshot, self.encoder = with_vectors(encoder or fake_encoder())
        self.live = LiveCatalog(snapshot, self.encoder)
        self.metrics = Metrics()
        self.follower = CatalogFollower(self.log, self.live, self.metrics, poll_s=0.001, merge_s=0.001)
        self.writer = ItemWriter(self.log, self.live, self.follower, MAX_BRANCH, self.metrics)
        self.follower.adopt = self.writer.adopt

    async def status(self, *changes: ItemChange) -> list[str]:
        return [outcome.status for outcome in await self.writer.write(changes)]


@pytest.mark.parametrize("second", [ItemChange(item_id="x", embedding=(1.0,)), replace(FIRST, embedding=(1.0,))])
async def test_an_embedding_of_another_width_is_refused_new_or_not(second: ItemChange) -> None:
    kit = Kit()
    assert await kit.status(FIRST, second) == ["added", "refused"]
    await kit.follower.catch_up()
    assert kit.live.snapshot.row_of("x") is not None
    assert await kit.status(second, ItemChange(item_id="item-3", embedding=(1.0, 2.0))) == ["refused", "refused"]
    assert await kit.status(replace(FIRST, embedding=(0.5,) * 8)) == ["changed"]


async def test_another_models_embedding_in_the_log_gives_way_to_the_text() -> None:
    kit = Kit()
    await kit.log.submit([LoggedChange(replace(FIRST, embedding=(1.0,) * 64), (1, 2, 3))])
    await kit.follower.catch_up()
    row = kit.live.snapshot.row_of("x")
    assert kit.live.snapshot.embeddings_NE is not None
    np.testing.assert_array_equal(
        kit.live.snapshot.embeddings_NE[row], kit.encoder.embeddings([(Item(item_id="x"), None)])[0]
    )
    # And one that came without a place under this model is placed by its text.
    await kit.log.submit([LoggedChange(ItemChange(item_id="y", title="t", embedding=(1.0,) * 64))])
    await kit.log.submit([LoggedChange(ItemChange(item_id="z", embedding=(1.0,) * 64))])
    await kit.follower.catch_up()
    await asyncio.sleep(0.05)
    await kit.follower.catch_up()
    assert kit.live.snapshot.row_of("y") is not None
    assert kit.live.snapshot.row_of("z") is None, "nothing tells where it belongs"


async def test_an_item_without_a_place_gets_one_however_often_the_log_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.items.follower._COMPLETE_S", 0)
    log = Faulty()
    kit = Kit(log)
    await kit.follower.catch_up()
    await log.submit([LoggedChange(replace(FIRST, item_id="y"))])  # of another model
    log.num_failures = 1
    await kit.follower.catch_up()
    await kit.follower.adopted()
    assert kit.live.snapshot.row_of("y") is None
    log.state_fails = True  # when all of it is to be read again
    with pytest.raises(CatalogUnavailable):
        await kit.follower.catch_up()
    await kit.follower.catch_up()
    await kit.follower.adopted()
    await kit.follower.catch_up()
    assert kit.live.snapshot.row_of("y") is not None


async def test_all_who_look_at_once_share_a_reading_that_began_after_they_asked() -> None:
    kit = Kit()
    await kit.follower.catch_up()
    before = kit.follower.num_begun
    await kit.log.submit([LoggedChange(replace(FIRST), (1, 2, 3))])
    await asyncio.gather(*(kit.follower.look() for _ in range(50)))
    assert kit.live.snapshot.row_of("x") is not None
    assert kit.follower.num_begun - before == 2, "most asked when the first had begun"
    await kit.follower.look()
    assert kit.follower.num_begun - before == 3


async def test_places_that_were_never_claimed_are_free_again() -> None:
    log = Faulty()
    kit = Kit(log)
    log.num_failures = 5
    for _ in range(5):
        with pytest.raises(CatalogUnavailable):
            await kit.writer.write([FIRST])
    [late] = await kit.writer.write([FIRST])
    [early] = await Kit().writer.write([FIRST])
    assert late.sid == early.sid


async def test_a_place_that_another_replica_took_is_not_asked_for_again() -> None:
    kit = Kit()
    [wanted] = await Kit().writer.write([FIRST])
    await kit.log.submit([LoggedChange(ItemChange(item_id="faster", title="t"), wanted.sid)])
    [given] = await kit.writer.write([FIRST])
    assert given.status == "added"
    assert given.sid != wanted.sid


class Rivalry(MemoryCatalogLog):
    """Whenever one replica claims a place, another has just added an item that belongs there, too."""

    rival: Kit | None = None
    num_rivals = 0

    async def submit(self, changes: Sequence[LoggedChange]) -> list[Submitted]:
        if (rival := self.rival) is not None:
            self.rival = None
            self.num_rivals += 1
            [outcome] = await rival.writer.write([replace(FIRST, item_id=f"rival-{self.num_rivals}")])
            assert outcome.status == "added"
            self.rival = rival
        return await super().submit(changes)


async def test_who_is_always_slower_than_another_replica_finds_a_place_all_the_same() -> None:
    for _ in range(20):
        log = Rivalry()
        kit, log.rival = Kit(log), Kit(log)
        [outcome] = await kit.writer.write([FIRST])
        assert outcome.status == "added"
        assert 1 < log.num_rivals < 10, "the first place was lost, and a few of the next perhaps"


class Endless(MemoryCatalogLog):
    """Something new at every reading, as under a steady stream of small changes."""

    async def since(self, position: str) -> LogTail | None:
        await self.submit([LoggedChange(ItemChange(item_id="item-1", title=position))])
        return await super().since(position)


async def test_a_steady_stream_of_changes_does_not_keep_them_from_being_applied() -> None:
    kit = Kit(Endless())
    await kit.follower.catch_up()
    async with asyncio.timeout(5):
        assert await kit.follower.catch_up()
    assert kit.live.snapshot.items[kit.live.snapshot.row_of("item-1") or 0].title


class Broken(MemoryCatalogLog):
    """Says once what nobody can foresee."""

    num_errors = 1

    async def state(self) -> LogState:
        if self.num_errors:
            self.num_errors -= 1
            raise RuntimeError("surprise")
        return await super().state()


async def test_no_error_ends_the_follower(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("service.items.follower._RETRY_S", 0.001)
    kit = Kit(Broken())
    await kit.log.submit([LoggedChange(ItemChange(item_id="item-1", title="seen"))])
    task = asyncio.create_task(kit.follower.run())
    async with asyncio.timeout(5):
        while kit.live.snapshot.items[kit.live.snapshot.row_of("item-1") or 0].title != "seen":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "surprise" in caplog.text


async def test_two_new_items_in_a_full_node_leave_one_out_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    items = [Item(item_id=name) for name in "ab"]
    snapshot = CatalogSnapshot.build(items, np.array([[0, 0], [0, 1]], dtype=np.int32), max_branch=(2, 3))
    live = LiveCatalog(snapshot, fake_encoder(2))
    changes = [LoggedChange(ItemChange(item_id=name, title=name), (0, code)) for name, code in (("c", 2), ("d", 3))]
    applied = live.apply([*changes, LoggedChange(ItemChange(item_id="a", title="new"))], "1-0")
    assert (applied.num_applied, applied.num_without_room) == (3, 1)
    assert (live.snapshot.row_of("c") is None) != (live.snapshot.row_of("d") is None)
    assert live.snapshot.items[live.snapshot.row_of("a") or 0].title == "new"
    assert "left out" in caplog.text


def held(snapshot: CatalogSnapshot) -> dict[str, tuple[Item, tuple[int, ...]]]:
    """What a catalog holds, by id: the item and its place."""
    rows = zip(snapshot.items, snapshot.sids_NL.tolist(), strict=True)
    return {item.item_id: (item, tuple(sid)) for item, sid in rows if not item.removed}


def drawn_change(rng: np.random.Generator) -> ItemChange:
    """Of one of the bundle's items or of one that may be new, some members, perhaps none."""
    item_id = f"item-{rng.integers(6)}" if rng.random() < 0.5 else f"new-{rng.integers(6)}"
    members = {
        "title": f"title {rng.integers(9)}", "text": f"text {rng.integers(9)}", "tags": (f"t{rng.integers(3)}",),
        "group": f"g{rng.integers(3)}", "available": bool(rng.integers(2)), "removed": bool(rng.integers(2)),
        "embedding": tuple(rng.normal(size=8).tolist()),
    }  # fmt: skip
    kept = {name: value for name, value in members.items() if rng.random() < 0.4}
    return ItemChange(item_id=item_id, **kept)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(25))
async def test_a_catalog_goes_back_to_any_version_and_forth_again(seed: int) -> None:
    """Against what it held then; a replica that starts afterwards sees the same."""
    kit, rng = Kit(), np.random.default_rng(seed)
    positions, states = ["0-0"], [held(kit.live.snapshot)]

    async def note() -> None:
        await kit.follower.catch_up()
        positions.append((await kit.log.newest(1))[0].position)
        states.append(held(kit.live.snapshot))

    for _ in range(6):
        await kit.writer.write([FIRST, *(drawn_change(rng) for _ in range(rng.integers(1, 6)))])
        await note()
    for _ in range(4):
        place = int(rng.integers(len(positions)))
        assert await kit.writer.roll_back(positions[place]) is not None
        await note()
        assert states[-1] == states[place]
        if rng.random() < 0.5:
            await kit.writer.write([drawn_change(rng)])
            await note()
    other = Kit(kit.log)
    await other.follower.catch_up()
    assert held(other.live.snapshot) == states[-1]
    assert other.live.snapshot.version == kit.live.snapshot.version


class Busy(MemoryCatalogLog):
    """Another writes before those of the parts of a rollback that are named, or the log is gone."""

    def __init__(self, *, busy: Sequence[int] = (), gone: Sequence[int] = ()) -> None:
        super().__init__()
        self.busy, self.gone, self.num_parts = busy, gone, 0

    async def append(self, changes: Sequence[ItemChange], *, after: str) -> str:
        part = self.num_parts
        self.num_parts += 1
        if part in self.gone:
            raise CatalogUnavailable("gone")
        if part in self.busy:
            late = [ItemChange(item_id="item-0", title="late"), ItemChange(item_id=f"late-{part}", title="t")]
            await self.submit([LoggedChange(change, (30, 30, part)) for change in late[1:]])
            await self.submit([LoggedChange(late[0])])
        return await super().append(changes, after=after)


@pytest.mark.parametrize("busy", [(), (0,), (1,), (0, 2), (1, 3)])
async def test_a_rollback_of_thousands_comes_in_parts_and_undoes_what_comes_between_them(busy: Sequence[int]) -> None:
    kit = Kit(Busy(busy=busy))
    before = held(kit.live.snapshot)
    changes = [ItemChange(item_id=f"new-{number}", title="t") for number in range(1500)]
    assert set(await kit.status(*changes)) == {"added"}
    await kit.follower.catch_up()
    assert len(held(kit.live.snapshot)) == 1520
    done = await kit.writer.roll_back("0-0")
    assert done is not None
    assert done.num_changes == 1500 + (1 + len(busy) if busy else 0)
    assert held(kit.live.snapshot) == before
    assert kit.live.snapshot.version == kit.live.version_at(done.position)


async def test_a_rollback_that_was_cut_off_is_asked_for_again() -> None:
    kit = Kit(Busy(gone=(1,)))
    before = held(kit.live.snapshot)
    await kit.writer.write([ItemChange(item_id=f"new-{number}", title="t") for number in range(1200)])
    with pytest.raises(CatalogUnavailable):
        await kit.writer.roll_back("0-0")
    assert await kit.writer.roll_back("0-0") is not None
    assert held(kit.live.snapshot) == before


async def test_a_rollback_writes_what_was_changed_alone() -> None:
    """What else the bundle says of the item is the next bundle's to say."""
    kit = Kit()
    await kit.writer.write([ItemChange(item_id="item-3", available=False)])
    await kit.writer.write([ItemChange(item_id="item-3", group="g")])
    done = await kit.writer.roll_back("0-0")
    assert done is not None
    tail = await kit.log.since("2-0")
    assert tail is not None
    assert [logged.change for logged in tail.changes] == [ItemChange(item_id="item-3", available=True, group="")]


async def test_an_item_of_another_model_that_is_brought_back_finds_its_place() -> None:
    """What brings it back says nothing of what it is; the rest of the log does."""
    kit = Kit()
    was = ItemChange(item_id="x", title="t", removed=True)
    await kit.log.submit([LoggedChange(was)])  # as another model's entries are read: without a place
    await kit.follower.catch_up()
    await kit.follower.close()
    assert kit.live.snapshot.row_of("x") is None
    await kit.log.submit([LoggedChange(ItemChange(item_id="x", removed=False))])
    for _ in range(50):
        await kit.follower.catch_up()
        await asyncio.sleep(0.01)
    assert held(kit.live.snapshot)["x"][0].title == "t"


async def test_what_the_log_no_longer_holds_is_not_gone_back_to() -> None:
    kit = Kit(MemoryCatalogLog(max_entries=3))
    for number in range(6):
        await kit.writer.write([ItemChange(item_id="item-1", title=str(number))])
    assert await kit.writer.roll_back("2-0") is None
    assert await kit.writer.roll_back("99-0") is None
    done = await kit.writer.roll_back("3-0")
    assert done is not None
    assert done.num_changes == 1
    assert kit.live.snapshot.items[1].title == "2"
