"""What can go wrong, as one small tree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class OneSlateError(Exception):
    """Of this client. Whatever it could not do, it says with one of these."""


class Unreachable(OneSlateError):
    """No answer came: nobody listens there, the connection broke, or time was over."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong at one place of a request."""

    pointer: str
    """JSON pointer into the body, or a path parameter."""
    detail: str


class ApiError(OneSlateError):
    """The service answered with a problem (RFC 9457)."""

    def __init__(self, status: int, members: Mapping[str, Any]) -> None:
        """`members`: of the problem; where an answer was none, what stands for it."""
        self.status = status
        self.type = str(members.get("type", "about:blank"))
        """What kind of problem: `urn:oneslate:problem:` and a name that stays the same."""
        self.title = str(members.get("title", ""))
        self.detail = str(members.get("detail", ""))
        self.request_id = str(members.get("request_id", ""))
        """Names the request in the service's log."""
        self.errors: Sequence[FieldError] = tuple(
            FieldError(str(one.get("pointer", "")), str(one.get("detail", "")))
            for one in _listed(members.get("errors"))
            if isinstance(one, Mapping)  # a gateway's own problem may list what it likes
        )
        super().__init__(self._sentence())

    @property
    def code(self) -> str:
        """The last part of `type`: `unknown-item`."""
        return self.type.rpartition(":")[2]

    def _sentence(self) -> str:
        places = "; ".join(f"{one.pointer}: {one.detail}" for one in self.errors)
        words = [self.title or f"HTTP {self.status}", places or self.detail]
        return ": ".join(word for word in words if word) + (f" (request {self.request_id})" if self.request_id else "")


def _listed(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


class TryLater(ApiError):
    """429 or 503: the same request may succeed later; it was tried again as long as the call's deadline allowed."""

    def __init__(self, status: int, members: Mapping[str, Any], retry_after_s: float | None) -> None:
        """`retry_after_s`: as the service said; None: it did not."""
        super().__init__(status, members)
        self.retry_after_s = retry_after_s


class UnexpectedAnswer(OneSlateError):
    """An answer that this client does not understand: not a OneSlate service, or one that is much newer."""
