"""A circuit breaker: what has just failed again and again is not asked for a while, so that nobody waits for it."""

import time
from collections.abc import Callable
from enum import Enum
from typing import Final

NUM_FAILURES: Final = 5
"""In a row, after which the circuit opens."""
SILENCE_S: Final = 0.1
"""Without any success in between: one node of several that is down does not cut off the others."""
OPEN_S: Final = 0.5
"""From then to the next probe."""


class State(Enum):
    """Of a circuit."""

    CLOSED = "closed"
    """Everybody asks."""
    OPEN = "open"
    """Nobody asks."""
    HALF_OPEN = "half_open"
    """One call asks, and the others wait for what it learns; until then they are refused."""


class CircuitBreaker:
    """Tells whether to ask. Everybody who may ask tells afterwards how it went."""

    def __init__(
        self,
        *,
        num_failures: int = NUM_FAILURES,
        open_s: float = OPEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_failures = num_failures
        self._open_s = open_s
        self._clock = clock
        self._failures_in_a_row = 0
        self._succeeded_s = -float("inf")
        self._opened_s: float | None = None
        self._probe_began_s: float | None = None

    @property
    def state(self) -> State:
        """Now."""
        if self._opened_s is None:
            return State.CLOSED
        return State.OPEN if self._clock() < self._opened_s + self._open_s else State.HALF_OPEN

    def may_ask(self) -> bool:
        """Whether the caller may ask; while half open the first one alone."""
        state = self.state
        if state is State.HALF_OPEN:
            # A probe that never told how it went (its task was cancelled) blocks nobody for longer than the pause.
            if self._probe_began_s is not None and self._clock() < self._probe_began_s + self._open_s:
                return False
            self._probe_began_s = self._clock()
            return True
        return state is State.CLOSED

    def succeeded(self) -> None:
        """It answered."""
        self._failures_in_a_row = 0
        self._succeeded_s = self._clock()
        self._opened_s = self._probe_began_s = None

    def failed(self) -> None:
        """It did not."""
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self._num_failures and self._clock() >= self._succeeded_s + SILENCE_S:
            self._opened_s = self._clock()
            self._probe_began_s = None
