"""Whether a bundle can be served, found out in a process of its own: what it costs or breaks is gone with it.

    python -m service.models.check BUNDLE       # ONESLATE_RUNNER and the like as the service's

Ends with 0, or with 1 and one line on standard error.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from service.errors import BundleError, OneSlateError
from service.opening import open_model, warm_up
from service.settings import Settings

_TIMEOUT_S: Final = 600.0
_MAX_WORDS: Final = 2000


async def check_aside(settings: Settings, path: Path) -> None:
    """Opens the bundle and runs all its graphs in another process as the service would, golden cases included.

    Raises:
        BundleError: it cannot be served, and why.
    """
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("ONESLATE_")}
    for name in ("runner", "provider", "precision", "intra_op_threads", "load_graphs"):
        environment[f"ONESLATE_{name.upper()}"] = str(getattr(settings, name))
    environment["ONESLATE_BATCH"] = settings.batch.model_dump_json()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service.models.check", str(path), env=environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise BundleError(f"{path}: the check does not start: {error.strerror or error}") from error
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, said = await process.communicate()
    except TimeoutError:
        raise BundleError(f"{path}: it was not opened within {_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        words = said.decode(errors="replace").strip().splitlines()
        raise BundleError(words[-1][:_MAX_WORDS] if words else f"{path}: the check ended with {process.returncode}")


def main(path: Path) -> int:
    """The exit code."""
    try:
        os.nice(10)  # the service beside it has users
        settings = Settings.load(bundle=path)
        runner, live = open_model(settings, None)
        warm_up(settings, runner, live.snapshot)  # every graph, the largest batch: what may break the engine
    except (OneSlateError, ValueError, OSError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
