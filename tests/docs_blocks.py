"""Code blocks of Markdown pages: found, run in order as a reader would, and their answers compared with the page's.

An HTML comment before a block says what is special about it:

- `<!-- not run: why -->`: it cannot run where the tests do; the commands in it are only looked up.
- `<!-- in the background -->`: it goes on until Ctrl-C; the next block begins when the service there is ready.
- `<!-- answer -->`: not code, but what the block before it prints.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from markdown_it import MarkdownIt
from markdown_it.token import Token

SERVICE = "127.0.0.1:8000"
"""Where pages say that the service is."""
RUN = {"sh": ("bash", "-euo", "pipefail", "-c"), "python": (".venv/bin/python", "-c")}
_NOTE = re.compile(r"<!-- *(not run: .+?|in the background|answer) *-->")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    """Of its fence, from 1."""
    language: str
    text: str
    note: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def is_code(self) -> bool:
        return self.language in RUN

    @property
    def why_not(self) -> str:
        """Why it is not run; empty: it is."""
        return self.note.removeprefix("not run: ") if self.note.startswith("not run: ") else ""


def tokens(page: Path) -> list[Token]:
    """As CommonMark with GitHub's tables."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, each with the comment right before it."""
    found, note = [], ""
    for token in tokens(page):
        if token.type == "fence":
            assert token.map is not None
            found.append(Block(page, token.map[0] + 1, token.info.strip(), token.content, note))
        told = _NOTE.fullmatch(token.content.strip()) if token.type == "html_block" else None
        note = told.group(1) if told else ""
    return found


def rewrite(page: Path, answers: Mapping[int, Block]) -> None:
    """Writes other text into the blocks that begin at these lines."""
    lines = page.read_text().splitlines(keepends=True)
    for block in reversed(blocks(page)):
        if block.line in answers:
            lines[block.line : block.line + block.text.count("\n")] = [answers[block.line].text]
    page.write_text("".join(lines))


def spans(page: Path) -> Iterator[str]:
    """All code spans of a page."""
    for token in tokens(page):
        yield from (child.content for child in token.children or () if child.type == "code_inline")


class Terminal:
    """Runs blocks in one folder; whatever a block left running ends with it."""

    def __init__(self, cwd: Path, port: int, environment: Mapping[str, str]) -> None:
        self._cwd = cwd
        self._address = f"127.0.0.1:{port}"
        self._environment = {**environment, "ONESLATE_PORT": str(port), "PORT": str(port), "COLUMNS": "120"}
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def run(self, block: Block) -> str:
        """What it prints. AssertionError with all of it where the block fails."""
        command = [*RUN[block.language], block.text.replace(SERVICE, self._address)]
        if block.note == "in the background":
            return self._start(block, command)
        done = subprocess.run(
            command, cwd=self._cwd, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block.place} ended with {done.returncode}\n{done.stdout}"
        assert "Traceback" not in done.stdout, f"{block.place}\n{done.stdout}"
        return done.stdout.replace(self._address, SERVICE)

    def _start(self, block: Block, command: list[str]) -> str:
        log = self._cwd / f"background-{len(self._running)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=self._cwd, env=self._environment, stdout=file, stderr=file, start_new_session=True
            )
        self._running.append(process)
        until_s = time.monotonic() + 120
        while not self._is_ready():
            assert process.poll() is None, f"{block.place}\n{log.read_text()}"
            assert time.monotonic() < until_s, f"{block.place} is not ready\n{log.read_text()}"
            time.sleep(0.05)
        return log.read_text().replace(self._address, SERVICE)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://{self._address}/readyz", timeout=1).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


_OF_THE_MODEL = ("item_id", "score", "reward", "sid", "code", "logprob", "cosine", "num_shared", "title", "beam_width")
_OF_THE_RUN = (
    "recommendation_id",
    "request_id",
    "model_version",
    "catalog_version",
    "bundle_version",
    "timestamp",
    "at",
)
_MODELS = ("active", "canary", "previous")
_OF_THE_MACHINE = ("history", "features", "queue", "inference", "total")
VOLATILE = frozenset((*_OF_THE_MODEL, *_OF_THE_RUN, *_MODELS, *_OF_THE_MACHINE))
"""Members of answers of which only the kind is compared."""


def differences(said: Any, got: Any, at: str = "") -> Iterator[str]:
    """Where an answer is not as the page says: other members, other kinds, or other values of what does not vary."""
    name = at.rpartition("/")[2]
    if isinstance(said, dict) and isinstance(got, dict):
        if said.keys() != got.keys():
            yield f"{at}: members {sorted(said)} on the page, {sorted(got)} in the answer"
        for key in said.keys() & got.keys():
            yield from differences(said[key], got[key], f"{at}/{key}")
    elif isinstance(said, list) and isinstance(got, list):
        if len(said) != len(got) and name != "runner_ups":
            yield f"{at}: {len(said)} on the page, {len(got)} in the answer"
        for index, (one, other) in enumerate(zip(said, got, strict=False)):
            yield from differences(one, other, at if name in VOLATILE else f"{at}/{index}")
    elif name in VOLATILE:
        if _kind(said) != _kind(got):
            yield f"{at}: {said!r} on the page, {got!r} in the answer"
    elif _without_versions(said) != _without_versions(got):
        yield f"{at}: {said!r} on the page, {got!r} in the answer"


def _without_versions(value: object) -> object:
    """Details of problems name the catalog."""
    return re.sub(r"\b[0-9a-f]{12}\.[\d-]+", "#", value) if isinstance(value, str) else value


def _kind(value: object) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def missing_lines(said: str, got: str) -> list[str]:
    """Lines of the page that the output does not have in this order; figures, signs and space count for nothing."""
    rest, missing = iter(_plain(got)), []
    for line in _plain(said):
        if line != "..." and not any(line == other for other in rest):
            missing.append(line)
            rest = iter(_plain(got))
    return missing


def _plain(text: str) -> list[str]:
    lines = (re.sub(r"\b[0-9a-f]{12}\b|[-+]?\d[\d.,:e-]*", "#", line) for line in text.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


def check_answer(block: Block, output: str) -> None:
    """AssertionError where a page's answer is not what its command printed."""
    if block.language == "json":
        wrong = list(differences(json.loads(block.text), json.loads(output)))
    else:
        wrong = missing_lines(block.text, output)
    assert not wrong, "\n".join([f"{block.place} is not what the command before it answers", *wrong, output])


def pretty(value: Any, indent: int = 0, used: int = 0, width: int = 92) -> str:
    """JSON with short things on one line, as pages show answers; `used`: characters before it on its first line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + max(indent, used) <= width or not isinstance(value, dict | list) or not value:
        return flat
    pad, inside = " " * indent, indent + 2
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {pretty(each, inside, inside + len(key) + 4)}" for key, each in value.items()]
    else:
        lines = [pretty(each, inside, inside) for each in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n" + ",\n".join(f"{pad}  {line}" for line in lines) + f"\n{pad}{end}"
