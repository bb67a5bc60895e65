"""The catalog: item rows sorted by semantic ID, the trie over them, and filters as prefix sums."""

from service.catalog.filters import TagFilter
from service.catalog.snapshot import CatalogSnapshot
from service.catalog.trie import Trie, build_trie

__all__ = ["CatalogSnapshot", "TagFilter", "Trie", "build_trie"]
