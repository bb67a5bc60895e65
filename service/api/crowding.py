"""Whether the event loop itself is behind: then even to read a request and say no takes too long."""

import asyncio
import time
from typing import Final

_PERIOD_S: Final = 0.01
CROWDED_S: Final = 0.03
"""Later than this the loop is behind: a few answers' worth of work stands before everything that comes."""


class LoopLag:
    """Measures how late a timer comes, all the time."""

    def __init__(self) -> None:
        self._due_s = time.monotonic() + _PERIOD_S
        self._lag_s = 0.0

    @property
    def lag_s(self) -> float:
        """Of the last timer, or of the one that is late now."""
        return max(self._lag_s, time.monotonic() - self._due_s)

    async def measure(self) -> None:
        """Until cancelled."""
        while True:
            self._due_s = time.monotonic() + _PERIOD_S
            await asyncio.sleep(_PERIOD_S)
            self._lag_s = max(0.0, time.monotonic() - self._due_s)
