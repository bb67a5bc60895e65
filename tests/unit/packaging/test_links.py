"""Every relative link and anchor in every Markdown file of the repository leads somewhere, read as GitHub reads it."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from docs_blocks import tokens

ROOT = Path(__file__).resolve().parents[3]
_HTML_TARGET = re.compile(r"""<(?:a|img)\s[^>]*?(?:href|src)=["']([^"']+)["']""")


def tracked() -> list[Path]:
    """All files of the repository, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


FILES = tracked()
PAGES = [path for path in FILES if path.suffix == ".md" and path.exists()]


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Line and target of every link and image."""
    for token in tokens(page):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            yield from ((line, target) for target in _HTML_TARGET.findall(token.content))
        for child in token.children or ():
            target = child.attrs.get("href") or child.attrs.get("src")
            if target:
                yield line, str(target)
            if child.type == "html_inline":
                yield from ((line, found) for found in _HTML_TARGET.findall(child.content))


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub names headings: lower case, no punctuation, a hyphen for each space; repeated ones are numbered."""
    found: dict[str, int] = {}
    names = set()
    parsed = tokens(page)
    for opening, inline in pairwise(parsed):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inline.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            count = found.get(slug, 0)
            found[slug] = count + 1
            names.add(f"{slug}-{count}" if count else slug)
    names |= set(re.findall(r"""<a id=["']([^"']+)["']>""", page.read_text()))
    return frozenset(names)


def broken(page: Path) -> Iterator[str]:
    for line, target in links(page):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / unquote(name)).resolve() if name else page
        where = f"{page.relative_to(ROOT)}:{line}: {target}"
        if not path.exists():
            yield f"{where}: there is no such file"
        elif path.is_file() and path not in FILES:
            yield f"{where}: not a file of the repository"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path):
            yield f"{where}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


def test_pages_are_found() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "RESULTS.md", "docs/index.md", "docs/operations.md", "docs/guides/api.md"} <= names


def test_broken_links_of_every_kind_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`\n\n[a](#one-two) [b](#three) [c](no.md) ![d](no.png) <img src='no.svg'>\n\n"
        "| [e](no2.md#x) |\n|---|\n"
    )
    monkeypatch.setattr("test_links.ROOT", tmp_path)
    monkeypatch.setattr("test_links.FILES", [page])
    assert [line.split(": ")[1] for line in broken(page)] == ["#three", "no.md", "no.png", "no.svg", "no2.md#x"]


def test_every_figure_is_shown_somewhere() -> None:
    shown = {(page.parent / target).resolve() for page in PAGES for _, target in links(page)}
    figures = {path for path in FILES if path.parent == ROOT / "docs" / "figures" and path.suffix in {".png", ".svg"}}
    assert figures - shown == set()
