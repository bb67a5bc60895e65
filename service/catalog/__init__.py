"""The catalog: item rows sorted by semantic ID, the trie over them, filters as prefix sums, and how they change."""

from service.catalog.change import ItemChange, LoggedChange
from service.catalog.encoding import NewItemEncoder
from service.catalog.filters import TagFilter
from service.catalog.live import LiveCatalog
from service.catalog.log import CatalogLog, MemoryCatalogLog
from service.catalog.snapshot import CatalogSnapshot, NewItems
from service.catalog.trie import Trie, build_trie

__all__ = [
    "CatalogLog",
    "CatalogSnapshot",
    "ItemChange",
    "LiveCatalog",
    "LoggedChange",
    "MemoryCatalogLog",
    "NewItemEncoder",
    "NewItems",
    "TagFilter",
    "Trie",
    "build_trie",
]
