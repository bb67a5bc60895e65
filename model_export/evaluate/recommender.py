"""What is compared: anything that ranks the catalog and fills slates.

Shapes: E examples, K length of a list.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from model_export.data import Examples

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
