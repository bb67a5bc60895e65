"""When a call is sent again, and what its end is. No I/O and no clock of its own: both clients follow it.

A call has a deadline. Whatever may be sent twice is sent again, after a pause, while nobody answers or the service says
408, 429, 502, 503 or 504; what may not, only while it surely was not taken up. `Retry-After` is a lower bound of the
pause (RFC 9110, 10.2.3); else pauses double, with full jitter. A pause that would end after the deadline is not begun.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from oneslate_client.errors import ApiError, OneSlateError, TryLater, Unreachable

_LATER: Final = frozenset({429, 503})
_REPEATABLE: Final = frozenset({408, 429, 502, 503, 504})
_NOT_TAKEN_UP: Final = frozenset({429})
"""Refused before anything was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patient a client is."""

    max_tries: int | None = None
    """None: as many as the deadline allows."""
    first_pause_s: float = 0.1
    """Upper bound of the first pause; every further one is twice as long at most."""
    max_pause_s: float = 5.0
    """Of what this client chooses itself; the service may ask for more."""

    def __post_init__(self) -> None:
        if (self.max_tries is not None and self.max_tries < 1) or not 0 < self.first_pause_s <= self.max_pause_s:
            raise ValueError("max_tries must be at least 1 and 0 < first_pause_s <= max_pause_s")


class Course:
    """One call's way: told of every failure, it gives the next pause or the error that ends it."""

    def __init__(
        self, policy: RetryPolicy, *, may_repeat: bool, deadline_s: float, rng: random.Random | None = None
    ) -> None:
        """`deadline_s`: on the clock that the caller goes by."""
        self._policy = policy
        self._may_repeat = may_repeat
        self._deadline_s = deadline_s
        self._rng = rng or random.Random()
        self._num_failures = 0

    def no_answer(self, error: Exception, now_s: float, *, was_sent: bool) -> float:
        """The pause before the next try, in seconds.

        Args:
            error: Of the connection.
            now_s: On the deadline's clock.
            was_sent: Whether the service may have seen the request.

        Raises:
            Unreachable: there is no next one.
        """
        ending = Unreachable(str(error) or type(error).__name__)
        return self._next(ending, now_s, may_repeat=self._may_repeat or not was_sent, at_least_s=0.0, cause=error)

    def problem(self, status: int, headers: Mapping[str, str], members: Mapping[str, Any], now_s: float) -> float:
        """The pause before the next try, in seconds.

        Args:
            status: Of an answer that is none of the call's own.
            headers: Of the answer; names in any case.
            members: Of its problem; empty: its body was none.
            now_s: On the deadline's clock.

        Raises:
            TryLater, ApiError: there is no next one.
        """
        retry_after_s = _retry_after_s(headers)
        ending = TryLater(status, members, retry_after_s) if status in _LATER else ApiError(status, members)
        may_repeat = status in _NOT_TAKEN_UP or (self._may_repeat and status in _REPEATABLE)
        return self._next(ending, now_s, may_repeat=may_repeat, at_least_s=retry_after_s or 0.0)

    def _next(
        self,
        ending: OneSlateError,
        now_s: float,
        *,
        may_repeat: bool,
        at_least_s: float,
        cause: Exception | None = None,
    ) -> float:
        self._num_failures += 1
        bound_s = min(self._policy.max_pause_s, self._policy.first_pause_s * 2.0 ** min(self._num_failures - 1, 60))
        pause_s = at_least_s + self._rng.uniform(0, bound_s)
        was_the_last = self._num_failures == self._policy.max_tries
        if not may_repeat or was_the_last or now_s + pause_s >= self._deadline_s:
            raise ending from cause
        return pause_s


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    text = next((value for name, value in headers.items() if name.lower() == "retry-after"), None)
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
