"""Who calls: looked up before a body is read.

Without keys everybody may everything, which `Settings` allows on loopback alone unless told otherwise.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

from starlette.requests import Request

from service.api.openapi import SCHEME
from service.api.serving import serving_of
from service.keys import Scope, TokenBucket
from service.problems import FORBIDDEN, RATE_LIMITED, UNAUTHORIZED, FieldError, Problem, ProblemError

_CHALLENGE: Final = {"WWW-Authenticate": SCHEME}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and what of it is theirs."""

    name: str = ""
    """Of the key; empty: the service has no keys."""
    user_id: str | None = None
    """The only user whose data they reach; None: all."""
    bucket: TokenBucket | None = None

    def check_user(self, user_id: str, pointer: str) -> None:
        """Raises a problem where the user is not theirs."""
        if self.user_id is not None and user_id != self.user_id:
            detail = "this key is bound to another user"
            raise ProblemError(Problem(FORBIDDEN, f"{pointer}: {detail}", [FieldError(pointer, detail)]))

    def spend(self) -> None:
        """Takes a request from what the key may send; a problem where it may not now."""
        if self.bucket is None or (wait_s := self.bucket.take()) == 0:
            return
        headers = {"Retry-After": str(max(1, ceil(wait_s)))}
        detail = f"This key may send {self.bucket.per_s:g} requests a second."
        raise ProblemError(Problem(RATE_LIMITED, detail, headers=headers))


_ANYBODY: Final = Caller()


def admit(request: Request, scope: Scope) -> Caller:
    """Whoever sent the request, if their key has the scope and its rate allows one more.

    Raises:
        ProblemError: 401 without a key that we know, 403 without the scope, 429 beyond the rate; 503 while starting.
    """
    keys = serving_of(request).keys
    if keys is None:
        return _ANYBODY
    key = keys.find(_token(request))
    if key is None:
        raise ProblemError(Problem(UNAUTHORIZED, "No key of this service was sent.", headers=dict(_CHALLENGE)))
    if scope not in key.scopes:
        raise ProblemError(Problem(FORBIDDEN, f"This takes a key with the scope {scope!r}."))
    caller = Caller(key.name, key.user_id, keys.bucket(key))
    caller.spend()
    return caller


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == SCHEME.lower() else ""
