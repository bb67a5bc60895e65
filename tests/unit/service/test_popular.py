"""The popular ranking by itself."""

import numpy as np

from service.catalog import CatalogSnapshot
from service.domain import item_key
from service.inference.fake_runner import fake_catalog
from service.inference.features import RequestInputs
from service.inference.popular import PopularRanking

CATALOG = fake_catalog(300)


def test_a_popular_slate_is_of_one_catalog_whatever_comes_meanwhile() -> None:
    """Another snapshot is put in its place in the middle: rows of one mean nothing in the other."""
    catalogs = iter([CATALOG, fake_catalog(310), fake_catalog(320)])
    last = [CATALOG]

    def changing() -> CatalogSnapshot:
        last[0] = next(catalogs, last[0])
        return last[0]

    ranking = PopularRanking(changing)
    request = RequestInputs(
        item_keys_E=np.array([item_key("item-5"), item_key("of no catalog")], dtype=np.uint64),
        timestamps_ms_E=np.zeros(2, dtype=np.int64),
        actions_E=np.ones(2, dtype=np.int32),
        values_E=np.zeros(2, dtype=np.float32),
        now_ms=0,
    )
    snapshot, ranked = ranking.slate(request, 5)
    assert [snapshot.items[row].item_id for row, _ in ranked] == [f"item-{number}" for number in (5, 12, 19, 26, 33)]
