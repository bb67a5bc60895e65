"""The figures that show recorded rows are those of today's rows, and the pages that describe them say the same."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "docs" / "figures" / "make.py"
OF_ROWS = ("reward", "industrial", "sequence")


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_figures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(svg: str) -> list[str]:
    """Where things are drawn, without what another version of matplotlib may write otherwise."""
    return [f"{float(x):.1f} {float(y):.1f}" for x, y in re.findall(r'<use [^>]*x="([\d.-]+)" y="([\d.-]+)"', svg)]


def test_the_committed_figures_are_drawn_from_the_newest_rows(tmp_path: Path) -> None:
    drawn = subprocess.run(
        [sys.executable, str(SCRIPT), *OF_ROWS, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=120, env={"PYTHONPATH": str(ROOT), "PATH": "", "MPLCONFIGDIR": str(tmp_path)},
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    for name in OF_ROWS:
        now, committed = (shapes((folder / f"{name}.svg").read_text()) for folder in (tmp_path, SCRIPT.parent))
        assert now == committed, f"python docs/figures/make.py {name}"
        assert name == "sequence" or now


@pytest.mark.parametrize(
    ("page", "bench", "workload", "unit", "figures"),
    [
        ("session-wise-generation", "trials-alignment", "slate", "true_reward",
         {"session-wise": "1.37", "supervised": "1.45", "best-of-n": "1.71", "item-wise-mmr": "1.75", "aligned": "1.87",
          "item-wise": "1.47", "oracle": "4.21"}),
        ("reproducing", "trials-industrial", "next item", "recall@10",
         {"generator": ".170", "item-wise": ".167", "sasrec-text": ".170", "cooccurrence": ".158", "sasrec": ".156"}),
        ("reproducing", "trials-industrial", "next item", "ndcg@10",
         {"generator": ".113", "item-wise": ".111", "sasrec-text": ".108", "cooccurrence": ".112", "sasrec": ".109"}),
    ],
)  # fmt: skip
def test_pages_say_what_the_figures_show(
    make: ModuleType, page: str, bench: str, workload: str, unit: str, figures: dict[str, str]
) -> None:
    found = make.values(make.newest(bench), workload, unit)
    text = (ROOT / "docs" / "guides" / f"{page}.md").read_text()
    for system, figure in figures.items():
        digits = len(figure.partition(".")[2])
        assert f"{found[system][0]:.{digits}f}".removeprefix("0") == figure, system
        assert figure in text


def test_tables_of_the_readme_are_the_newest_rows(make: ModuleType) -> None:
    """Figures with intervals, as `| name | .1698 [.1558, .1834] |`: each stands in a recorded run."""
    recorded = {
        "{} [{}, {}]".format(*tuple(f"{part:.{digits}f}".removeprefix("0") for part in parts))
        for bench, workload, unit, digits in (
            ("trials-industrial", "next item", "recall@10", 4),
            ("trials-industrial", "next item", "ndcg@10", 4),
            ("trials-alignment", "slate", "true_reward", 3),
        )
        for parts in make.values(make.newest(bench), workload, unit).values()
    }
    for name in ("README.md", "docs/guides/reproducing.md"):
        rows = [line for line in (ROOT / name).read_text().splitlines() if line.startswith("| ")]
        said = {cell for line in rows for cell in re.findall(r"[\d.]+ \[[\d.]+, [\d.]+\]", line)}
        assert len(said) >= 10
        assert said - recorded == set(), name
