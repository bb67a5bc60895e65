"""The trie, the rows and the filters of a catalog against dictionaries and plain loops."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog import CatalogSnapshot, TagFilter, build_trie
from service.domain import Item, item_key
from service.errors import CatalogError

TAGS = ("drama", "short", "new", "live")
NO_ONE_HAS = "no one has this"
Catalog = tuple[list[Item], np.ndarray]


@st.composite
def sid_sets(draw: st.DrawFn) -> list[tuple[int, ...]]:
    num_levels = draw(st.integers(1, 4))
    sid = st.tuples(*(st.integers(0, draw(st.integers(0, 5))) for _ in range(num_levels)))
    return draw(st.lists(sid, min_size=1, max_size=40, unique=True))


@st.composite
def catalogs(draw: st.DrawFn) -> Catalog:
    sids = draw(sid_sets())
    items = [
        Item(
            item_id=f"item {number}",
            tags=tuple(draw(st.lists(st.sampled_from(TAGS), unique=True, max_size=3))),
            available=draw(st.booleans()),
            group=draw(st.sampled_from(["", "x", "y"])),
        )
        for number in range(len(sids))
    ]
    return items, np.array(sids, dtype=np.int32)


@settings(deadline=None, max_examples=300)
@given(sid_sets())
def test_the_trie_holds_every_prefix_and_no_other(sids: list[tuple[int, ...]]) -> None:
    rows = sorted(sids)
    trie = build_trie(np.array(rows, dtype=np.int32))
    children: dict[tuple[int, ...], list[int]] = defaultdict(list)
    below: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, sid in enumerate(rows):
        for depth in range(len(sid) + 1):
            below[sid[:depth]].append(row)
            if depth < len(sid) and sid[depth] not in children[sid[:depth]]:
                children[sid[:depth]].append(sid[depth])
    nodes: list[tuple[int, ...]] = [()]
    for level in range(len(rows[0])):
        begin, code, row_of = trie.child_begin[level], trie.child_code[level], trie.child_row[level]
        assert begin.dtype == code.dtype == row_of.dtype == np.int32
        assert len(begin) == len(nodes) + 1
        next_nodes = []
        for node, prefix in enumerate(nodes):
            assert code[begin[node] : begin[node + 1]].tolist() == children[prefix]
            next_nodes += [(*prefix, one) for one in children[prefix]]
        assert len(code) == len(next_nodes) == begin[-1]
        for child, prefix in enumerate(next_nodes):
            assert list(range(row_of[child], row_of[child + 1])) == below[prefix]
        assert trie.max_branch[level] == max(len(children[prefix]) for prefix in nodes)
        nodes = next_nodes
    assert nodes == rows


@settings(deadline=None, max_examples=150)
@given(sid_sets(), st.randoms(use_true_random=False))
def test_rows_that_are_out_of_order_or_collide_are_refused(sids: list[tuple[int, ...]], random) -> None:  # type: ignore[no-untyped-def]
    rows = sorted(sids)
    doubled = sorted([*rows, random.choice(rows)])
    with pytest.raises(CatalogError, match="collision"):
        build_trie(np.array(doubled, dtype=np.int32))
    shuffled = random.sample(rows, len(rows))
    if shuffled != rows:
        with pytest.raises(CatalogError, match="sorted"):
            build_trie(np.array(shuffled, dtype=np.int32))


@settings(deadline=None, max_examples=200)
@given(catalogs())
def test_a_child_has_a_group_if_all_items_below_it_do(catalog: Catalog) -> None:
    snapshot = CatalogSnapshot.build(*catalog)
    row_groups_N = snapshot.child_groups[-1].tolist()
    numbers = {(item.group, number) for item, number in zip(snapshot.items, row_groups_N, strict=True)}
    assert len(numbers) == len(dict(numbers)) == len({number for _, number in numbers})
    assert dict(numbers).get("", -1) == -1
    for group_M, row in zip(snapshot.child_groups, snapshot.trie.child_row, strict=True):
        assert group_M.dtype == np.int32
        for group, begin, end in zip(group_M.tolist(), row[:-1], row[1:], strict=True):
            below = set(row_groups_N[begin:end])
            assert group == (below.pop() if len(below) == 1 else -1)


@settings(deadline=None, max_examples=200)
@given(catalogs(), st.data())
def test_rows_are_sorted_by_sid_and_found_by_id_and_key(catalog: Catalog, data: st.DataObject) -> None:
    items, sids_NL = catalog
    popularity_N = np.arange(len(items)) * 3
    snapshot = CatalogSnapshot.build(items, sids_NL, popularity_N)
    assert snapshot.sids_NL.tolist() == sorted(sids_NL.tolist())
    for number, item in enumerate(items):
        row = snapshot.row_of(item.item_id)
        assert row is not None
        assert snapshot.items[row] is item
        assert snapshot.sids_NL[row].tolist() == sids_NL[number].tolist()
        assert snapshot.popularity_N[row] == 3 * number
    names = st.sampled_from([*(item.item_id for item in items), "stranger", "item -1"])
    asked = data.draw(st.lists(names, max_size=20))
    keys = np.array([item_key(item_id) for item_id in asked], dtype=np.uint64)
    found = snapshot.rows_of_keys(np.append(keys, np.array([0, 2**64 - 1], dtype=np.uint64)))
    assert found.dtype == np.int32
    assert found.tolist() == [*(-1 if (row := snapshot.row_of(one)) is None else row for one in asked), -1, -1]


tag_sets = st.frozensets(st.sampled_from([*TAGS, NO_ONE_HAS]), max_size=3)


@settings(deadline=None, max_examples=300)
@given(catalogs(), tag_sets, tag_sets, tag_sets)
def test_a_filter_allows_what_each_item_alone_would_say(
    catalog: Catalog, any_of: frozenset[str], all_of: frozenset[str], none_of: frozenset[str]
) -> None:
    snapshot = CatalogSnapshot.build(*catalog)
    empty = not (any_of or all_of or none_of)
    tag_filter = None if empty else TagFilter(any_of=any_of, all_of=all_of, none_of=none_of)
    cumsum = snapshot.allowed_cumsum(tag_filter)
    expected = [
        item.available
        and (not any_of or bool(any_of & set(item.tags)))
        and all_of <= set(item.tags)
        and not none_of & set(item.tags)
        for item in snapshot.items
    ]
    assert cumsum.dtype == np.int32
    assert cumsum[0] == 0
    assert np.diff(cumsum).tolist() == [int(allowed) for allowed in expected]
    assert snapshot.allowed_cumsum(tag_filter) is cumsum


@settings(deadline=None, max_examples=60)
@given(catalogs(), st.randoms(use_true_random=False))
def test_the_version_depends_on_contents_and_not_on_order(catalog: Catalog, random) -> None:  # type: ignore[no-untyped-def]
    items, sids_NL = catalog
    order = random.sample(range(len(items)), len(items))
    version = CatalogSnapshot.build(items, sids_NL).version
    assert CatalogSnapshot.build([items[at] for at in order], sids_NL[order]).version == version
    first = items[0]
    flipped = [Item(item_id=first.item_id, tags=first.tags, available=not first.available), *items[1:]]
    renamed = [Item(item_id="another", tags=first.tags, available=first.available), *items[1:]]
    retagged = [Item(item_id=first.item_id, tags=(*first.tags, "more"), available=first.available), *items[1:]]
    moved = sids_NL.copy()
    moved[0] += 100
    versions = [CatalogSnapshot.build(one, sids_NL).version for one in (flipped, renamed, retagged)]
    versions.append(CatalogSnapshot.build(items, moved).version)
    assert len({version, *versions}) == 5
