"""Where a service spends its time: a profile of its process, by part of the house or by library."""

import pstats
import sys
from collections import defaultdict
from pathlib import Path
from typing import Final

_PROFILED: Final = """
import cProfile
from service.app import serve
from service.settings import Settings
profile = cProfile.Profile()
try:
    serve(Settings.load(), on_ready=lambda _: profile.enable())
finally:
    profile.disable()
    profile.dump_stats({path!r})
"""
_OF_LIBRARIES: Final = {
    "uvicorn": "uvicorn, httptools, uvloop", "httptools": "uvicorn, httptools, uvloop", "redis": "redis-py, hiredis",
    "hiredis": "redis-py, hiredis", "starlette": "fastapi, starlette", "fastapi": "fastapi, starlette",
    "pydantic": "pydantic, orjson", "pydantic_core": "pydantic, orjson", "orjson": "pydantic, orjson",
    "prometheus_client": "prometheus_client", "numpy": "numpy", "asyncio": "asyncio", "anyio": "fastapi, starlette",
}  # fmt: skip
_OF_BUILTINS: Final = {
    "uvloop": "uvicorn, httptools, uvloop", "httptools": "uvicorn, httptools, uvloop", "hiredis": "redis-py, hiredis",
    "pydantic_core": "pydantic, orjson", "SchemaValidator": "pydantic, orjson", "orjson": "pydantic, orjson",
    "numpy": "numpy", "ndarray": "numpy",
}  # fmt: skip


def profiled_command(path: Path) -> tuple[str, ...]:
    """`oneslate serve`, which leaves a profile in `path` when it ends."""
    return (sys.executable, "-c", _PROFILED.format(path=str(path)))


def shares_of(path: Path) -> dict[str, float]:
    """Share of the profiled time by part, largest first. What waits for the network counts for nothing.

    What C code did counts for its library where its name tells, else for the part that called it.
    """
    times_s: dict[str, float] = defaultdict(float)
    stats = pstats.Stats(str(path)).stats  # type: ignore[attr-defined]
    for (file, _, name), (_, _, own_s, _, callers) in stats.items():
        if file != "~":
            times_s[_part(file)] += own_s
        elif any(
            mark in name for mark in ("run_forever", "run_until_complete", "epoll", "select.", "_thread", "Runner")
        ):
            continue
        elif of := next((part for mark, part in _OF_BUILTINS.items() if mark in name), None):
            times_s[of] += own_s
        else:
            for (caller, _, _), (_, _, caller_own_s, _) in callers.items():
                times_s["other" if caller == "~" else _part(caller)] += caller_own_s
    total_s = sum(times_s.values())
    ranked = sorted(times_s.items(), key=lambda entry: -entry[1])
    return {part: own_s / total_s for part, own_s in ranked}


def _part(file: str) -> str:
    parts = Path(file).parts
    if "site-packages" in parts:
        library = parts[parts.index("site-packages") + 1].removesuffix(".py")
        return _OF_LIBRARIES.get(library, "other libraries")
    if "service" in parts:
        below = parts[parts.index("service") + 1 :]
        return "service/" + below[0]
    for part in reversed(parts):
        if part in _OF_LIBRARIES:
            return _OF_LIBRARIES[part]
    return "Python's own library"
