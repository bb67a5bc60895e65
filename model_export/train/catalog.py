"""The catalog of a training run: prepared items under their sids, and the way between item indexes and rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_export.data.prepared import PreparedData
from service.catalog import CatalogSnapshot
from service.domain import Item


@dataclass(frozen=True, kw_only=True)
class TrainingCatalog:
    """N items: as the data set numbers them (item index) and as the catalog does (row)."""

    snapshot: CatalogSnapshot
    row_of_item_N: npt.NDArray[np.int32]
    item_of_row_N: npt.NDArray[np.int32]

    @classmethod
    def build(cls, prepared: PreparedData, sids_NL: npt.NDArray[np.int32]) -> "TrainingCatalog":
        """Sorts the prepared items by their sids; popularity counts the events that training may see."""
        items = [
            Item(
                item_id=row["item_id"],
                title=row["title"] or "",
                text=row["text"] or "",
                tags=tuple(row["tags"] or ()),
                group=row["group"] or "",
                available=bool(row["available"]),
            )
            for row in prepared.items.iter_rows(named=True)
        ]
        num_events_N = np.bincount(prepared.item_E[prepared.train_events()], minlength=len(items))
        snapshot = CatalogSnapshot.build(items, sids_NL, num_events_N)
        row_of_item_N = np.array([snapshot.row_of(item.item_id) for item in items], dtype=np.int32)
        item_of_row_N = np.empty_like(row_of_item_N)
        item_of_row_N[row_of_item_N] = np.arange(len(items), dtype=np.int32)
        return cls(snapshot=snapshot, row_of_item_N=row_of_item_N, item_of_row_N=item_of_row_N)
