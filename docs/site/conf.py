"""The documentation as a site: `make docs`. Sphinx reads the Markdown where it lies, from the root of the repository,
so that the same relative links work there, on GitHub and in an editor; a link to a file that is no page offers it.
"""

from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]

project = "OneSlate"
author = "The OneSlate authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "docs/index"
include_patterns = ["README.md", "RESULTS.md", "docs/*.md", "docs/guides/*.md", "docs/decisions/*.md", "deploy/**/*.md"]
exclude_patterns = [".*", "build", "bundles", "data", "runs"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "OneSlate"
html_copy_source = False
html_show_sphinx = False
html_extra_path = ["redirect"]
html_static_path = ["static"]
html_css_files = ["wide.css"]
pygments_style = "default"

_SECTIONS = {
    "": ["The README </README.md>"],
    "Guides": [
        "guides/your-own-data", "guides/api", "guides/session-wise-generation", "guides/deploying",
        "guides/reproducing", "guides/limits",
    ],
    "Reference": ["operations", "/deploy/kubernetes/README.md", "how-it-works", "what-did-not-pay", "/RESULTS.md"],
    "Decisions": [f"decisions/{page.stem}" for page in sorted((ROOT / "docs" / "decisions").glob("*.md"))],
}  # fmt: skip


def _with_contents(_: Sphinx, page: str, source: list[str]) -> None:
    """The site's tree of pages, which would only be noise where the home page is read as a file."""
    if page == root_doc:
        for caption, pages in _SECTIONS.items():
            lines = [f":caption: {caption}"] if caption else []
            options = "\n".join([":hidden:", ":titlesonly:", *lines])
            names = "\n".join(name.replace(".md", "") for name in pages)
            source[0] += f"\n```{{toctree}}\n{options}\n\n{names}\n```\n"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _with_contents)
