"""API keys: who may call what, whose data, and how often.

A key is a random token that the client sends; the service knows its SHA-256 alone. They stand in a JSON file that is
read again when it changes, so that keys come and go without a restart. Several tokens may share a name: that is how a
key is rotated, and the name is what rates and turns in the queue go by.
"""

import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from stat import S_IMODE
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import KeyFileError

_log = logging.getLogger(__name__)
Scope = Literal["recommend", "events", "items", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
_TOKEN_BYTES: Final = 32
_TOKEN_PREFIX: Final = "osk_"  # noqa: S105 - not a password: found by scanners for leaked secrets
_MAX_FILE_BYTES: Final = 10_000_000


class ApiKey(BaseModel):
    """One token's entry in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._-]+$")]
    """Of the client, for people and for the log of what admins did; several tokens may share it."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the token's UTF-8 bytes, in hexadecimal."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, strict=False)]
    user_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """The only user whose data the key reaches; null: all."""
    requests_per_s: Annotated[float, Field(gt=0, le=1e6, strict=False)] | None = None
    """Allowed on average; null: any number. Each slate of `POST /v1/recommend/batch` counts as one."""
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Allowed at once after a pause; null: what a second allows, at least 1."""


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    keys: Annotated[tuple[ApiKey, ...], Field(strict=False)]


def new_token() -> str:
    """A token that nobody can guess: 256 random bits."""
    return _TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def digest(token: str) -> str:
    """What stands in the file for a token."""
    return sha256(token.encode()).hexdigest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The entries of a file.

    Raises:
        KeyFileError: it cannot be read, or is not what it should be; names the place, never a digest.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror or error}") from error
    if len(text) > _MAX_FILE_BYTES:
        raise KeyFileError(f"{path}: a file of keys has at most {_MAX_FILE_BYTES} bytes")
    try:
        keys = _KeyFile.model_validate_json(text).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise KeyFileError(f"{path}: {place}: {first['msg']}") from None
    _agree(path, keys)
    return keys


def _agree(path: Path, keys: Sequence[ApiKey]) -> None:
    digests = [key.sha256 for key in keys]
    if len(set(digests)) < len(digests):
        raise KeyFileError(f"{path}: one token stands there twice")
    by_name: dict[str, ApiKey] = {}
    for key in keys:
        first = by_name.setdefault(key.name, key)
        if (key.requests_per_s, key.burst) != (first.requests_per_s, first.burst):
            raise KeyFileError(f"{path}: tokens of the name {key.name!r} must have one rate")


def change_keys(path: Path, change: Callable[[tuple[ApiKey, ...]], Iterable[ApiKey]]) -> None:
    """Reads the file (none: no keys), changes what it holds, and writes it: nobody else does so meanwhile.

    Raises:
        KeyFileError: it cannot be read, or the entries do not agree afterwards; the file stays as it was.
    """
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        write_keys(path, change(read_keys(path) if path.exists() else ()))


def write_keys(path: Path, keys: Iterable[ApiKey]) -> None:
    """Replaces the file at once: a service that reads it meanwhile sees the old one or the new one.

    Owner and mode stay as they are, so that who could read it still can; a new file is its owner's alone.

    Raises:
        KeyFileError: the entries do not agree.
    """
    keys = tuple(keys)
    _agree(path, keys)
    members = {"keys": [key.model_dump(mode="json", exclude_none=True) for key in keys]}
    fresh = path.with_name(f".{path.name}.new")
    known = path.stat() if path.exists() else None
    with open(fresh, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        if known is not None:
            if (known.st_uid, known.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), known.st_uid, known.st_gid)
            os.fchmod(file.fileno(), S_IMODE(known.st_mode))
        json.dump(members, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


class TokenBucket:
    """So many a second on average, and a burst after a pause."""

    __slots__ = ("_clock", "_level", "_seen_s", "burst", "per_s")

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s, self.burst = per_s, burst
        self._clock = clock
        self._level = burst
        self._seen_s = clock()

    def take(self) -> float:
        """Takes one; else the seconds until it is there."""
        now_s = self._clock()
        self._level = min(self.burst, self._level + (now_s - self._seen_s) * self.per_s)
        self._seen_s = now_s
        if self._level >= 1:
            self._level -= 1
            return 0.0
        return (1 - self._level) / self.per_s


class KeyRing:
    """The keys in force."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the file. KeyFileError: it cannot be used."""
        self._path = path
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}
        self._stamp = _stamp(path)
        self._keys = read_keys(path)
        self.is_current = True
        """Whether the keys in force are those of the file."""
        self._take_over()

    @property
    def num_keys(self) -> int:
        """Tokens that are accepted."""
        return len(self._keys)

    def find(self, token: str) -> ApiKey | None:
        """The key of a token. Compares it with every digest, each in constant time."""
        # What is not UTF-8 text (lone surrogates of a header) is no token of ours.
        sent = sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(sent, key.sha256):
                found = key
        return found

    def bucket(self, key: ApiKey) -> TokenBucket | None:
        """Of the key's name; None: any rate."""
        return self._buckets.get(key.name)

    def refresh(self) -> bool:
        """Reads the file again if it has changed; tells whether it did.

        Raises:
            KeyFileError: it cannot be used now; the keys of before stay in force.
        """
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp  # a bad file is complained of once, not at every look
        self.is_current = False
        try:
            self._keys = read_keys(self._path)
        except KeyFileError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | PermissionError):
                self._stamp = ()  # too many open files, say: the file will not change when that is over
            raise
        self.is_current = True
        self._take_over()
        _log.info("%d API keys in force", len(self._keys))
        return True

    def _take_over(self) -> None:
        """A rate that stays as it was goes on from where it is."""
        buckets = {}
        for key in self._keys:
            if key.requests_per_s is not None:
                burst = float(max(1.0, key.requests_per_s) if key.burst is None else key.burst)
                known = self._buckets.get(key.name)
                is_same = known is not None and (known.per_s, known.burst) == (key.requests_per_s, burst)
                buckets[key.name] = known if known and is_same else TokenBucket(key.requests_per_s, burst, self._clock)
        self._buckets = buckets


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # The last changes with owner and mode, too: a file that could not be read may be readable now.
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns
