"""The limit of open files, raised by the process itself."""

import subprocess
import sys

import pytest

SCRIPT = """
import logging, resource, sys
from service.files import allow_files, allowed_files, needed_files
from service.settings import LimitSettings, Settings
logging.basicConfig(format="%(message)s")
soft, hard, connections = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
settings = Settings(runner="fake", limits=LimitSettings(connections=connections))
allowed = allowed_files(settings)
allow_files(settings)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], allowed, needed_files(settings))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "expected", "warns"),
    [
        (200, 900, 100, 420, False),  # as far as it is needed
        (200, 300, 100, 300, True),  # as far as it may
        (800, 900, 100, 800, False),  # never less than before
    ],
)
def test_it_is_raised_as_far_as_needed_and_allowed(
    soft: int, hard: int, connections: int, expected: int, warns: bool
) -> None:
    arguments = [sys.executable, "-c", SCRIPT, str(soft), str(hard), str(connections)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(expected), str(expected), "420"]
    assert ("ONESLATE_LIMITS__CONNECTIONS" in done.stderr) == warns
