"""How many files the process may have open: connections are files."""

import logging
import resource
import sys
from typing import Final

from service.settings import Settings

_log = logging.getLogger(__name__)
_LIMIT: Final = resource.RLIMIT_NOFILE
_SPARE: Final = 256
"""For what is neither a client's connection nor one to Redis."""


def needed_files(settings: Settings) -> int:
    """That may be open at once, by the settings."""
    return settings.limits.connections + settings.history.max_connections + _SPARE


def allowed_files(settings: Settings) -> int:
    """That may be open at once after `allow_files`: more than needed where the process began with more."""
    soft, hard = (sys.maxsize if one == resource.RLIM_INFINITY else one for one in resource.getrlimit(_LIMIT))
    return max(soft, min(hard, needed_files(settings)))


def allow_files(settings: Settings) -> None:
    """Raises the process's own limit to what is needed, as far as it may: shells and containers begin with 1,024."""
    soft, hard = resource.getrlimit(_LIMIT)
    allowed = allowed_files(settings)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(_LIMIT, (allowed, hard))
    if allowed < needed_files(settings):
        _log.warning(
            "at most %d open files, %d may be needed: raise the hard limit, or lower ONESLATE_LIMITS__CONNECTIONS",
            allowed, needed_files(settings),
        )  # fmt: skip
