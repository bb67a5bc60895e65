"""Whether a bundle can be served, found out in a process of its own: what it costs or breaks is gone with it.

    python -m service.models.check BUNDLE       # ONESLATE_RUNNER and the like as the service's

Ends with 0; with 1 (the bundle's fault) or 3 (not the bundle's) and one line on standard error.
"""

import asyncio
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from service.errors import BundleError, BundleUnopened, CatalogError, OneSlateError
from service.opening import open_model, warm_up
from service.settings import Settings

_TIMEOUT_S: Final = 600.0
_LOOK_S: Final = 0.1
_MAX_WORDS: Final = 2000
_UNOPENED: Final = 3
_NICER: Final = 10
"""By how much the process is nicer than this one, from its first import on: the service beside it has users. It counts
as a tenth of each that is busy; at 19 (a seventieth) a check of a second took three minutes on a full machine."""


async def check_aside(settings: Settings, path: Path) -> None:
    """Opens the bundle and runs all its graphs in another process as the service would, golden cases included.

    Raises:
        BundleError: it cannot be served, and why; BundleUnopened where that is not the bundle's fault.
    """
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("ONESLATE_")}
    for name in ("runner", "provider", "precision", "intra_op_threads", "load_graphs"):
        environment[f"ONESLATE_{name.upper()}"] = str(getattr(settings, name))
    environment["ONESLATE_BATCH"] = settings.batch.model_dump_json()
    left = threading.Event()
    try:
        # Not by the event loop: it would stand still while the pages of a large process are set up for its copy.
        returncode, said = await asyncio.to_thread(_run, path, environment, left)
    except OSError as error:
        raise BundleUnopened(f"{path}: the check does not start: {error.strerror or error}") from error
    finally:
        left.set()
    if returncode != 0:
        words = said.decode(errors="replace").strip().splitlines()
        # Below 0 a signal ended it: where memory is short, the kernel's.
        kind = BundleUnopened if returncode == _UNOPENED or returncode < 0 else BundleError
        raise kind(words[-1][:_MAX_WORDS] if words else f"{path}: the check ended with {returncode}")


def _run(path: Path, environment: dict[str, str], left: threading.Event) -> tuple[int, bytes]:
    """The exit code and what was said; kills the process once whoever asked has left."""
    end_s = time.monotonic() + _TIMEOUT_S
    with subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "service.models.check", str(path)], env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        with suppress(ProcessLookupError):  # it has ended already
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, process.pid, min(own + _NICER, 19))
        while time.monotonic() < end_s and not left.is_set():
            with suppress(subprocess.TimeoutExpired):
                _, said = process.communicate(timeout=_LOOK_S)
                return process.returncode, said
        process.kill()
    raise BundleUnopened(f"{path}: it was not opened within {_TIMEOUT_S:g} s")


def main(path: Path) -> int:
    """The exit code."""
    try:
        settings = Settings.load(bundle=path)
        runner, live = open_model(settings, None)
        warm_up(settings, runner, live.snapshot)  # every graph, the largest batch: what may break the engine
    except (OneSlateError, ValueError, OSError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1 if isinstance(error, BundleError | CatalogError) else _UNOPENED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
