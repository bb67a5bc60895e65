"""What a catalog refuses, and what it remembers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.catalog import CatalogSnapshot, TagFilter, build_trie
from service.catalog import index as index_module
from service.catalog import snapshot as snapshot_module
from service.domain import Item
from service.errors import CatalogError, FilterError

SIDS = np.array([[0, 0], [0, 1], [0, 2], [1, 0]], dtype=np.int32)
ITEMS = [Item(item_id=name, tags=("even",) if number % 2 == 0 else ()) for number, name in enumerate("abcd")]


def test_a_repeated_id_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"1 item id\(s\) stand twice"):
        CatalogSnapshot.build([*ITEMS[:3], ITEMS[0]], SIDS)


def test_a_collision_is_refused() -> None:
    with pytest.raises(CatalogError, match="collision"):
        CatalogSnapshot.build(ITEMS, SIDS[[0, 1, 1, 3]])


@pytest.mark.parametrize(("max_branch", "level"), [((1, 3), 0), ((2, 2), 1)])
def test_more_children_than_the_model_allows_are_refused(max_branch: tuple[int, ...], level: int) -> None:
    with pytest.raises(CatalogError, match=f"level {level} has"):
        CatalogSnapshot.build(ITEMS, SIDS, max_branch=max_branch)


def test_as_many_children_as_the_model_allows_are_welcome() -> None:
    assert CatalogSnapshot.build(ITEMS, SIDS, max_branch=(2, 3)).trie.max_branch == (2, 3)


def test_items_and_sids_must_agree() -> None:
    with pytest.raises(CatalogError, match="4 items, but 3 sids"):
        CatalogSnapshot.build(ITEMS, SIDS[:3])


def test_an_empty_catalog_is_refused() -> None:
    with pytest.raises(CatalogError, match="at least one item"):
        CatalogSnapshot.build([], SIDS[:0])
    with pytest.raises(CatalogError, match="at least one item"):
        build_trie(SIDS[:0])


def test_two_ids_with_one_key_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "item_key", lambda item_id: ord(item_id) // 2)
    with pytest.raises(CatalogError, match="64-bit key"):
        CatalogSnapshot.build(ITEMS, SIDS)


def test_a_filter_that_asks_nothing_is_refused() -> None:
    with pytest.raises(FilterError, match="at least one tag"):
        TagFilter()


def test_prefix_sums_are_shared_and_cannot_be_changed() -> None:
    catalog = CatalogSnapshot.build(ITEMS, SIDS)
    cumsum = catalog.allowed_cumsum()
    assert cumsum.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="read-only"):
        cumsum[1] = 0


def test_the_cache_forgets_the_filter_that_was_used_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "_MAX_CACHED_FILTERS", 2)
    catalog = CatalogSnapshot.build(ITEMS, SIDS)
    even, odd = TagFilter(any_of=frozenset({"even"})), TagFilter(none_of=frozenset({"even"}))
    plain, first = catalog.allowed_cumsum(), catalog.allowed_cumsum(even)
    assert catalog.allowed_cumsum() is plain  # used again: `even` is now the oldest
    catalog.allowed_cumsum(odd)
    assert catalog.allowed_cumsum() is plain
    again = catalog.allowed_cumsum(even)
    assert again is not first
    assert again.tolist() == first.tolist() == [0, 1, 1, 2, 2]


def test_threads_may_ask_for_filters_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "_MAX_CACHED_FILTERS", 3)
    catalog = CatalogSnapshot.build(ITEMS, SIDS)
    filters = [TagFilter(any_of=frozenset({"even", f"tag {number}"})) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda number: catalog.allowed_cumsum(filters[number % 8]).tolist(), range(800)))
    assert all(one == [0, 1, 1, 2, 2] for one in sums)
    assert len(catalog._cumsums) == 3


def test_asking_for_no_keys_finds_no_rows() -> None:
    assert CatalogSnapshot.build(ITEMS, SIDS).rows_of_keys(np.zeros(0, dtype=np.uint64)).tolist() == []
