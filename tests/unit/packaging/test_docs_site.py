"""The site builds without a warning, has every page, and asks no other host for anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-c", "docs/site", "-b", "html"]
    built = subprocess.run(
        [*command, "-d", str(out / "doctrees"), ".", str(out / "html")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (built.returncode, built.stderr) == (0, "")
    return out / "html"


def test_every_page_is_there_and_in_the_contents(site: Path) -> None:
    home = (site / "docs" / "index.html").read_text()
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "guides").glob("*.md")]
    pages += (ROOT / "docs" / "decisions").glob("*.md")
    for page in pages:
        place = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / "docs" / place).is_file(), place
        assert place.name == "index.html" or f'href="{place}"' in home, f"{place} is in no section of docs/site/conf.py"
    assert 'href="../README.html"' in home
    assert "url=docs/index.html" in (site / "index.html").read_text()


def test_figures_and_files_come_along(site: Path) -> None:
    assert "_images/trie.svg" in (site / "docs" / "guides" / "session-wise-generation.html").read_text()
    page = (site / "docs" / "guides" / "deploying.html").read_text()
    linked = re.search(r'href="(\.\./\.\./_downloads/[^"]+/redis\.conf)"', page)
    assert linked is not None
    assert (site / "docs" / "guides" / linked.group(1)).is_file()


def test_no_page_asks_another_host(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=["']((?:https?:)?//[^"']+)""")
    for page in site.rglob("*.html"):
        assert loads.findall(page.read_text()) == [], page
    for style in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:https?:)?//", style.read_text()) == [], style
