"""Commands on pages exist: subcommands, options, make targets, modules, settings; also in blocks that no test can run.

Which blocks are not run, and why, stands here, so that a new one does not slip in.
"""

import itertools
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import docs_blocks
import pytest
import typer
import yaml

import oneslate
from service.settings import CollectSettings, Settings, _names

ROOT = Path(__file__).resolve().parents[3]
GUIDES = ROOT / "docs" / "guides"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(GUIDES.glob("*.md"))]
NOT_RUN = {
    ("deploying.md", "needs a container engine"),
    ("deploying.md", "needs a Redis with TLS; tests/contract/test_tls.py has one"),
    ("deploying.md", "needs an NVIDIA GPU"),
    ("deploying.md", "loads the machine for minutes; tests/e2e/test_loadtest.py runs a short one"),
    ("reproducing.md", "needs the data set KuaiRand-Pure"),
    (
        "reproducing.md",
        "takes minutes; tests/unit/packaging/test_figures.py draws those that are read off recorded rows",
    ),
}
TARGETS = set(re.findall(r"^([a-z.][\w./]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SERVICES = set(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])
OTHERS = {"curl", "head", "cat", "date", "echo", "cp", "mv", "mkdir", "pip", "docker", "kubectl", "python", "pytest"}
"""Programs whose options are not ours; what of their arguments is ours is looked up."""


def commands(text: str) -> Iterator[list[str]]:
    """Words of every command of a shell text, without variables set before it and what is in single quotes."""
    text = re.sub(r"'[^']*'", "'quoted'", text.replace("\\\n", " "))
    while inner := re.search(r"\$\(([^()]*)\)", text):
        yield from commands(inner.group(1))
        text = text.replace(inner.group(), "value")
    for part in re.split(r"\n|&&|\||;", text):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


def trouble(words: list[str]) -> str:
    """What of a command does not exist; empty: nothing."""
    program = words[0].removeprefix(".venv/bin/")
    if program == "oneslate":
        return _trouble_of_ours(words[1:])
    if program == "make":
        unknown = [f"target {word}" for word in words[1:] if "=" not in word and word not in TARGETS]
    elif program not in OTHERS:
        unknown = [f"program {program}"]
    elif words[1:2] == ["-m"]:
        unknown = [] if find_spec(words[2]) else [f"module {words[2]}"]
    elif words[:3] == ["docker", "compose", "run"]:
        unknown = [] if words[-1] in SERVICES else [f"service {words[-1]}"]
    elif program == "kubectl":
        unknown = [f"folder {word}" for word in words[1:] if "/" in word and not (ROOT / word).is_dir()]
    else:
        unknown = [f"file {word}" for word in words[1:] if word.endswith(".py") and not (ROOT / word).exists()]
    return f"no {unknown[0]}" if unknown else ""


def _trouble_of_ours(words: list[str]) -> str:
    command: Any = typer.main.get_command(oneslate.cli)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        if name not in command.commands:
            return f"no command {name}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known | {"--help"}]
    return f"no option {unknown[0]}" if unknown else ""


def texts(page: Path) -> Iterator[tuple[str, str]]:
    """Place and text of every shell block, and of every code span that is a command of ours."""
    for block in docs_blocks.blocks(page):
        if block.language == "sh":
            yield block.place, block.text
    for span in docs_blocks.spans(page):
        if re.match(r"([A-Z_]+=\S+ )*(\.venv/bin/)?(oneslate|make|python -m|pytest|docker compose|kubectl) ", span):
            yield page.name, span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page: Path) -> None:
    found = [
        f"{place}: {' '.join(words)}: {what}"
        for place, text in texts(page)
        for words in commands(text)
        if (what := trouble(words))
    ]
    assert found == []


def test_keys_are_made_listed_and_revoked_in_the_file_that_the_service_reads() -> None:
    page = GUIDES / "deploying.md"
    (read,) = set(re.findall(r"ONESLATE_KEYS_FILE=(\S+)", page.read_text()))
    of_keys = [words[1:] for _, text in texts(page) for words in commands(text) if words[1:2] == ["keys"]]
    assert {name for _, name, *_ in of_keys} == {"new", "list", "revoke"}
    keys: Any = typer.main.get_command(oneslate.keys_cli)
    for _, name, *words in of_keys:
        arguments = list(itertools.takewhile(lambda word: word != ">", words))
        assert keys.commands[name].make_context(name, arguments).params["file"] == Path(read), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_exist(page: Path) -> None:
    known = set(_names(Settings, "ONESLATE_")) | set(_names(CollectSettings, "ONESLATE_")) | {"ONESLATE_KEY"}
    named = set(re.findall(r"\bONESLATE_[A-Z_]*[A-Z]\b", page.read_text()))
    assert {name for name in named - known if not name.startswith("ONESLATE_FILTERS__")} == set()


def test_what_is_not_run_is_known_and_everything_else_is_read_by_the_test_that_runs_it() -> None:
    not_run = {(page.name, block.why_not) for page in PAGES for block in docs_blocks.blocks(page) if block.why_not}
    assert not_run == NOT_RUN
    run = {page for page in PAGES for block in docs_blocks.blocks(page) if block.is_code and not block.why_not}
    runner = (ROOT / "tests" / "e2e" / "test_docs.py").read_text()
    assert {page.name for page in run if f'"{page.name}"' not in runner} == set()


def test_no_block_is_of_a_language_that_nobody_reads() -> None:
    languages = {block.language for page in PAGES for block in docs_blocks.blocks(page)}
    assert languages <= {*docs_blocks.RUN, "json", "text", ""}
    for page in PAGES:
        for block in docs_blocks.blocks(page):
            assert block.language != "json" or block.note == "answer", f"{block.place}: an answer of what?"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("oneslate bulid --data x", "no command bulid"),
        (".venv/bin/oneslate build --dta x", "no option --dta"),
        ("A=1 oneslate bench decode --workloads slate", "no option --workloads"),
        ("make dmeo", "no target dmeo"),
        ("python -m loadtests.cpu.run", "no module loadtests.cpu"),
        ("docker compose run --rm nobody", "no service nobody"),
        ("kubectl apply -k deploy/kubernetes/overlays/tpu", "no folder deploy/kubernetes/overlays/tpu"),
        ("cd x && oneslate demo --twice", "no program cd"),
        ("echo $(oneslate nothing)", "no command nothing"),
    ],
)
def test_what_does_not_exist_is_told(text: str, what: str) -> None:
    assert any(what in _told(words) for words in commands(text))


def _told(words: list[str]) -> str:
    try:
        return trouble(words)
    except ModuleNotFoundError as error:
        return f"no module {error.name}"
