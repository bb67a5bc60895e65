"""Pages do what they say: every code block of README and guides is run in order, in one clean folder, and its answer
compared. Builds are as small as `tiny_build` makes them. `--rewrite-docs FOLDER` builds in full in that folder (and the
next time goes on from there), and writes the answers in JSON anew.
"""

import json
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import docs_blocks
import pytest
import tiny_build
from docs_blocks import Block, Terminal
from tiny_build import Built

from service.history.embedded import EmbeddedRedis

pytestmark = pytest.mark.slow

ROOT = tiny_build.ROOT
GUIDES = ROOT / "docs" / "guides"
PAGES = [ROOT / "README.md", GUIDES / "your-own-data.md", GUIDES / "api.md", GUIDES / "deploying.md"]
"""Pages with something to run, in the order in which they build on each other."""


@pytest.fixture(scope="module")
def reader(request: pytest.FixtureRequest) -> "Reader":
    folder = request.config.getoption("--rewrite-docs")
    built: Built | None = None if folder else request.getfixturevalue("built")
    return Reader(built.cwd if built else Path(folder).resolve(), rewrite=built is None)


class Reader:
    """Someone with a fresh clone, who has installed it and does what the pages say."""

    def __init__(self, cwd: Path, *, rewrite: bool) -> None:
        self.cwd = cwd
        self._rewrite = rewrite
        for made_before in ("bundles", "data", "keys", "log", "models", "runs/notebook") if rewrite else ():
            shutil.rmtree(cwd / made_before, ignore_errors=True)
        self._read: set[Path] = set()
        for name in ("Makefile", "constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.cwd)
        shutil.copytree(GUIDES / "sample", self.cwd / "docs" / "guides" / "sample", dirs_exist_ok=True)
        programs = self.cwd / ".venv" / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        command = f"{sys.executable} {ROOT / 'tests' / 'docs_command.py'}"
        if rewrite:
            command = f"{sys.executable} -c 'import oneslate; oneslate.main()'"
        for name, program in (("python", sys.executable), ("oneslate", command)):
            (programs / name).write_text(f'#!/bin/sh\nexec {program} "$@"\n')
            (programs / name).chmod(0o755)
        for stamp in ("created", "demo", "all"):
            (self.cwd / ".venv" / f"{stamp}.stamp").touch()

    def read(self, page: Path) -> None:
        """Runs the page's blocks, once; AssertionError where one fails or answers otherwise."""
        if page in self._read:
            return
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        answers: dict[int, Block] = {}
        try:
            with Terminal(self.cwd, port, self._environment()) as terminal:
                output = ""
                for block in docs_blocks.blocks(page):
                    if block.is_code and not block.why_not:
                        output = terminal.run(block)
                    elif block.note == "answer" and self._rewrite and block.language == "json":
                        answers[block.line] = replace(block, text=docs_blocks.pretty(json.loads(output)) + "\n")
                    elif block.note == "answer" and not self._rewrite:
                        docs_blocks.check_answer(block, output)
        finally:
            for data in sorted(self.cwd.glob("data/*")):
                EmbeddedRedis(data).stop()
        if answers:
            docs_blocks.rewrite(page, answers)
        self._read.add(page)

    def _environment(self) -> dict[str, str]:
        """Patient limits: what a page shows must not depend on what else this machine does."""
        return tiny_build.environment(
            PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}",
            ONESLATE_HISTORY__READ_TIMEOUT_MS="3000",
            ONESLATE_HISTORY__CONNECT_TIMEOUT_MS="3000",
            ONESLATE_DEADLINE_MS="20000",
            ONESLATE_LOG_LEVEL="warning",
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, reader: Reader) -> None:
    if page.name in {"api.md", "deploying.md"}:
        reader.read(GUIDES / "your-own-data.md")  # whose bundle they serve
    reader.read(page)
