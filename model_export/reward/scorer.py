"""Whoever can say what a slate is worth.

Shapes: B examples, W candidate slates of each, K slate size.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from model_export.data.examples import Examples


class SlateScorer(Protocol):
    """Scores slates for users: the session reward model, or the simulator's truth."""

    def score(self, examples: Examples, item_BWK: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """The expected reward `[B, W]` of each slate, given the history (never the target) of its example.

        Args:
            examples: Whose history, and when.
            item_BWK: Item indexes in the order shown; -1 after the end of a slate that is shorter than K.
        """
        ...
