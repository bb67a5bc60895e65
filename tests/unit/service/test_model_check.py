"""The side process that looks at a model before it is put into service."""

import asyncio
import sys
from pathlib import Path

import psutil
import pytest
from model_bundles import write_model

from service.errors import BundleError
from service.models import check
from service.settings import Settings

SETTINGS = Settings(runner="fake")


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that never ends."""
    script = tmp_path / "endless"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def running_checks() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE and "sleep" in child.name()]


async def test_a_model_that_can_be_served_passes_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    bundle = write_model(tmp_path, "one")
    await check.check_aside(SETTINGS, bundle)
    (bundle / "generator.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"generator\.onnx"):
        await check.check_aside(SETTINGS, bundle)


@pytest.mark.usefixtures("endless")
async def test_it_gives_way_to_users_and_ends_with_who_asked(tmp_path: Path) -> None:
    asking = asyncio.create_task(check.check_aside(SETTINGS, tmp_path))
    async with asyncio.timeout(10):
        while not (found := running_checks()) or found[0].nice() == psutil.Process().nice():
            assert not asking.done()
            await asyncio.sleep(0.01)
    # Below 19, where two busy processes would leave it next to nothing of the machine.
    assert [process.nice() for process in found] == [min(psutil.Process().nice() + 10, 19)]
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.to_thread(psutil.wait_procs, found, timeout=10)
    assert running_checks() == []


@pytest.mark.usefixtures("endless")
async def test_one_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_TIMEOUT_S", 0.2)
    with pytest.raises(BundleError, match=r"not opened within 0\.2 s"):
        await check.check_aside(SETTINGS, tmp_path)
    assert running_checks() == []
