"""What is compared: anything that ranks the catalog and fills slates.

Shapes: E examples, K length of a list.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from model_export.data.examples import Examples

Items = npt.NDArray[np.int32]


class Recommender(Protocol):
    """A model under evaluation. It sees an example's history only, never its target.

    Every method returns item indexes `[E, K]` int32, best first, -1 where the list is shorter than K. Under the repeat
    policy `exclude` no list may hold an item of the example's history, and none may hold an unavailable item.
    """

    @property
    def name(self) -> str:
        """Its name in reports; unique among those compared."""
        ...

    def rank(self, examples: Examples, k: int) -> Items:
        """The k best next items, each scored as an item (never as a sid string), over the full catalog."""
        ...

    def slates(self, examples: Examples, k: int) -> Items:
        """One slate of k items for each example."""
        ...


@dataclass(frozen=True)
class Seeds:
    """One recommender trained several times, with different seeds: evaluated as one.

    A figure is the mean over runs and examples; its interval covers users and seeds (see `bootstrap`).
    """

    name: str
    """In reports."""
    runs: tuple[Recommender, ...]
    """At least one; their own names do not matter."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError(f"{self.name}: seeds without a run")


Competitor = Recommender | Seeds


def runs_of(competitor: Competitor) -> tuple[Recommender, ...]:
    """The runs of one row of the report."""
    return competitor.runs if isinstance(competitor, Seeds) else (competitor,)
