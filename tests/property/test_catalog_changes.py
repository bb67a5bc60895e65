"""A catalog that was changed step by step is the catalog that is built from what is left."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog import CatalogSnapshot, NewItems, TagFilter
from service.domain import Item, item_key
from service.errors import CatalogError

TAGS = ("x", "y", "z")
FILTERS = (
    None,
    TagFilter(any_of=frozenset("xy")),
    TagFilter(all_of=frozenset("yz")),
    TagFilter(none_of=frozenset("x")),
)
SIZES = (4, 3, 300)

sids = st.tuples(*(st.integers(0, size - 1) for size in SIZES))
tags = st.lists(st.sampled_from(TAGS), max_size=3).map(tuple)


def vector_of(sid: tuple[int, ...]) -> list[float]:
    vector = np.array([sid[0] - 1.3, sid[1] + 0.2, sid[2] - 100.0])
    return (vector / np.linalg.norm(vector)).tolist()


@st.composite
def histories_of_a_catalog(draw: st.DrawFn) -> list[tuple[list[Item], list[tuple[Item, tuple[int, ...]]]]]:
    """Per step the items that are replaced and those that are added; the first step adds only."""
    places = draw(st.lists(sids, min_size=2, max_size=24, unique=True))
    steps, known = [], 0
    while known < len(places):
        num_new = draw(st.integers(0 if steps else 1, len(places) - known))
        if not num_new and len(steps) > 6:
            break
        numbers = draw(st.lists(st.integers(0, known - 1), unique=True, max_size=4)) if known else []
        added = [(an_item(draw, number), places[number]) for number in range(known, known + num_new)]
        steps.append(([an_item(draw, number) for number in numbers], draw(st.permutations(added))))
        known += num_new
    return steps


def an_item(draw: st.DrawFn, number: int) -> Item:
    return Item(
        item_id=f"item {number}",
        tags=draw(tags),
        group=draw(st.sampled_from(["", "g", "h"])),
        available=draw(st.booleans()),
        removed=draw(st.booleans()),
    )


def new_items(added: list[tuple[Item, tuple[int, ...]]], *, with_vectors: bool) -> NewItems:
    return NewItems(
        items=[item for item, _ in added],
        sids_AL=np.array([sid for _, sid in added], dtype=np.int32).reshape(-1, len(SIZES)),
        vectors_AD=np.array([vector_of(sid) for _, sid in added], dtype=np.float32) if with_vectors else None,
        embeddings_AE=np.array([sid for _, sid in added], dtype=np.float32) if with_vectors else None,
    )


def assert_same(changed: CatalogSnapshot, items: dict[str, Item], sid_of: dict[str, tuple[int, ...]]) -> None:
    vectors_ND = np.array([vector_of(sid_of[item_id]) for item_id in items], dtype=np.float32)
    built = CatalogSnapshot.build(
        list(items.values()),
        np.array([sid_of[item_id] for item_id in items], dtype=np.int32),
        vectors_ND=None if changed.vectors_ND is None else vectors_ND,
    )
    if changed.embeddings_NE is not None:
        assert np.array_equal(changed.embeddings_NE, changed.sids_NL)
    assert changed.items == built.items
    assert np.array_equal(changed.sids_NL, built.sids_NL)
    assert changed.sids_NL.dtype == np.int32
    assert np.array_equal(changed.shown_N, [item.available and not item.removed for item in built.items])
    for name in ("child_begin", "child_code", "child_row"):
        for ours, theirs in zip(getattr(changed.trie, name), getattr(built.trie, name), strict=True):
            assert np.array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
    # Numbers may differ, what has the same one may not; and none is none.
    numbers = {-1: -1} | dict(zip(built.groups_N.tolist(), changed.groups_N.tolist(), strict=True))
    assert len(set(numbers.values())) == len(numbers)
    for ours, theirs in zip(changed.child_groups, built.child_groups, strict=True):
        assert ours.tolist() == [numbers[group] for group in theirs.tolist()]
        assert ours.dtype == np.int32
    for ours, theirs in zip(changed.child_vectors, built.child_vectors, strict=True):
        assert np.allclose(ours, theirs, atol=1e-6)
    for tag_filter in FILTERS:
        assert np.array_equal(changed.allowed_cumsum(tag_filter), built.allowed_cumsum(tag_filter))
    asked = [*items, "stranger"]
    assert [changed.row_of(one) for one in asked] == [built.row_of(one) for one in asked]
    keys = np.array([item_key(one) for one in asked], dtype=np.uint64)
    assert np.array_equal(changed.rows_of_keys(keys), built.rows_of_keys(keys))
    assert sorted(changed.ranked_rows().tolist()) == list(range(len(items)))


@settings(deadline=None, max_examples=300)
@given(histories_of_a_catalog(), st.booleans())
def test_every_state_on_the_way_is_what_would_be_built(
    steps: list[tuple[list[Item], list[tuple[Item, tuple[int, ...]]]]], with_vectors: bool
) -> None:
    items: dict[str, Item] = {}
    sid_of: dict[str, tuple[int, ...]] = {}
    snapshot: CatalogSnapshot | None = None
    seen = []
    for number, (replaced, added) in enumerate(steps):
        new = new_items(added, with_vectors=with_vectors)
        if snapshot is None:
            snapshot = CatalogSnapshot.build(
                new.items, new.sids_AL, vectors_ND=new.vectors_AD, embeddings_NE=new.embeddings_AE
            )
        else:
            snapshot = snapshot.changed(f"v{number}", replaced, new)
            assert snapshot.version == f"v{number}"
        items |= {item.item_id: item for item in replaced} | {item.item_id: item for item, _ in added}
        sid_of |= {item.item_id: sid for item, sid in added}
        seen.append((snapshot, dict(items)))
    # The earlier ones are still what they were: batches may be decoding against them.
    for kept, then in seen:
        assert_same(kept, then, sid_of)


@settings(deadline=None, max_examples=100)
@given(histories_of_a_catalog())
def test_two_may_go_on_from_one_snapshot(
    steps: list[tuple[list[Item], list[tuple[Item, tuple[int, ...]]]]],
) -> None:
    added = [one for _, new in steps for one in new]
    first, *rest = added
    start = CatalogSnapshot.build([first[0]], np.array([first[1]], dtype=np.int32))
    half = len(rest) // 2
    left = start.changed("left", (), new_items(rest[:half], with_vectors=False))
    right = start.changed("right", (), new_items(rest[half:], with_vectors=False))
    for snapshot, theirs in ((start, [first]), (left, [first, *rest[:half]]), (right, [first, *rest[half:]])):
        assert_same(snapshot, {item.item_id: item for item, _ in theirs}, {item.item_id: sid for item, sid in theirs})


def test_popular_items_stay_in_front_and_new_ones_come_last() -> None:
    items = [Item(item_id=name) for name in "abc"]
    sids_NL = np.array([[2, 0], [0, 0], [1, 0]], dtype=np.int32)
    snapshot = CatalogSnapshot.build(items, sids_NL, popularity_N=np.array([1, 9, 5]))
    new = NewItems(items=[Item(item_id="d"), Item(item_id="e")], sids_AL=np.array([[1, 2], [1, 1]], np.int32))
    grown = snapshot.changed("v", [replace(items[0], title="t")], new)
    assert [grown.items[row].item_id for row in grown.ranked_rows()] == ["b", "c", "a", "d", "e"]
    assert grown.popularity_N[[grown.row_of(name) for name in "bcade"]].tolist() == [9, 5, 1, 0, 0]


@pytest.mark.parametrize(
    ("item_id", "sid", "message"),
    [
        ("d", [0, 0], "collision"),
        ("a", [2, 2], "already"),
        ("d", [0, 2], "level 1 has 3"),
        ("d", [2, 0], "level 0 has 3"),
    ],
)
def test_what_cannot_be_added_is_refused_and_changes_nothing(item_id: str, sid: list[int], message: str) -> None:
    items = [Item(item_id=name) for name in "abc"]
    sids_NL = np.array([[0, 0], [0, 1], [1, 0]], dtype=np.int32)
    snapshot = CatalogSnapshot.build(items, sids_NL, max_branch=(2 if message != "already" else 3, 2))
    new = NewItems(items=[Item(item_id=item_id)], sids_AL=np.array([sid], dtype=np.int32))
    with pytest.raises(CatalogError, match=message):
        snapshot.changed("v", (), new)
    assert snapshot.row_of("d") is None
    assert snapshot.num_items == 3
    fine = NewItems(items=[Item(item_id="d")], sids_AL=np.array([[1, 1]], dtype=np.int32))
    assert snapshot.changed("w", (), fine).row_of("d") == 3
