"""Tests that share what is costly to make run in one process: pytest and xdist have to agree on how they are told."""

import re
import subprocess
import sys
from pathlib import Path

CONFTEST = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.xdist_group("one" if "shared" in item.name else item.path.name))
"""
TESTS = "import pytest\n\n@pytest.mark.parametrize('i', range(6))\ndef test_{name}(i):\n    pass\n"


def test_a_group_runs_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for file, name in (("test_a.py", "shared_a"), ("test_b.py", "shared_b"), ("test_c.py", "c")):
        (tmp_path / file).write_text(TESTS.format(name=name))
    options = [
        "-n",
        "2",
        "--dist",
        "loadgroup",
        "--no-loadscope-reorder",
        "-v",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        ".",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    ran = re.findall(r"\[(gw\d)\].* PASSED \S*::test_(shared|c)", done.stdout)
    assert len(ran) == 18, done.stdout
    assert len({worker for worker, name in ran if name == "shared"}) == 1, done.stdout
