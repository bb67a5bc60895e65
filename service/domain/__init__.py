"""Plain types that every other part of the service speaks in; imports nothing of the project."""

from service.domain.event import Event, HistoryEntry
from service.domain.impression import Impression
from service.domain.item import Item, item_key
from service.domain.slate import RankedSlate, Slate, SlateItem

__all__ = ["Event", "HistoryEntry", "Impression", "Item", "RankedSlate", "Slate", "SlateItem", "item_key"]
