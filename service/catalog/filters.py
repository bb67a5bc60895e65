"""Filters by tag."""

from dataclasses import dataclass

from service.errors import FilterError


@dataclass(frozen=True, slots=True)
class TagFilter:
    """Keeps the items that carry at least one of `any_of`, every one of `all_of` and none of `none_of`.

    An empty part asks nothing. A tag that no item carries matches no item.
    """

    any_of: frozenset[str] = frozenset()
    all_of: frozenset[str] = frozenset()
    none_of: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not (self.any_of or self.all_of or self.none_of):
            raise FilterError("a filter needs at least one tag in any_of, all_of or none_of")
