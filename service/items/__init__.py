"""Changing the catalog while it is in service: what clients ask goes into the log, what the log says into service."""

from service.items.follower import CatalogFollower
from service.items.writer import ItemOutcome, ItemWriter

__all__ = ["CatalogFollower", "ItemOutcome", "ItemWriter"]
