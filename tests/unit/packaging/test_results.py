"""The result format and the page that is rendered from it."""

import json
import re
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from loadtests.bench.result import (
    RESULTS_DIR,
    BenchResult,
    Row,
    detect_hardware,
    format_value,
    git_commit,
    new_result,
    read_results,
)
from loadtests.bench.results_page import PAGE, render, write


def result(bench: str = "http", value: float = 1.5, **changes: object) -> BenchResult:
    made = new_result(bench, [Row(workload="history 100", system="oneslate", value=value, unit="ms")])
    return made.model_copy(update=changes)


def test_the_committed_page_is_what_the_recorded_runs_render_to() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(RESULTS_DIR), "run `oneslate results` and commit RESULTS.md"


def test_a_run_survives_the_file(tmp_path: Path) -> None:
    first, second = result(value=0.1), result(value=3, ratios={"speed-up": 2.5}, caveat="busy machine")
    path = first.append_to(tmp_path / "new")
    assert second.append_to(tmp_path / "new") == path
    assert path.name == "http.jsonl"
    assert read_results(path) == [first, second]


def test_the_printed_output_ends_in_one_json_line_however_narrow_the_terminal() -> None:
    run = result(caveat="a caveat that is longer than forty characters, by far")
    out = StringIO()
    run.print_to(Console(file=out, width=40))
    last = out.getvalue().splitlines()[-1]
    assert BenchResult.model_validate_json(last) == run
    assert {"bench", "commit", "hardware", "rows", "ratios"} <= json.loads(last).keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_figure_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        result(value=value)


@pytest.mark.parametrize("bench", ["../http", "HTTP", "", "a b", "a/b"])
def test_a_bench_name_cannot_leave_the_folder(bench: str) -> None:
    with pytest.raises(ValidationError):
        result(bench)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = result().append_to(tmp_path)
    with path.open("a") as file:
        file.write(result().json_line().replace('"unit":"ms"', '"unti":"ms"') + "\n")
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}:2: rows.0.unit: Field required"):
        read_results(path)


def test_a_line_in_the_wrong_file_is_named(tmp_path: Path) -> None:
    path = result("http").append_to(tmp_path)
    path.rename(tmp_path / "decode.jsonl")
    with pytest.raises(ValueError, match=r"decode\.jsonl:1: bench 'http' does not belong"):
        render(tmp_path)


def test_the_page_is_newest_first_and_loses_nothing(tmp_path: Path) -> None:
    for day, value in (("2026-01-02", 2.0), ("2026-01-03", 3.0), ("2026-01-01", 1.0), ("2026-01-03", 4.0)):
        result(value=value, date=f"{day}T00:00:00Z", command=f"bench {value:g}").append_to(tmp_path)
    result("decode", caveat="two\nlines", ratios={"hf": 18.0}).append_to(tmp_path)
    page = write(tmp_path, tmp_path / "RESULTS.md").read_text()
    assert page == render(tmp_path)
    assert re.findall(r"`bench (\d)`", page) == ["4", "3", "2", "1"]
    assert page.index("## decode") < page.index("## http")
    assert "- caveat: two lines" in page
    assert "| hf | 18 |" in page


def test_a_pipe_in_a_name_stays_in_its_cell(tmp_path: Path) -> None:
    run = new_result("http", [Row(workload="a|b", system="c", value=1, unit="ms")])
    run.append_to(tmp_path)
    assert "| a\\|b | c | 1 | ms |" in render(tmp_path)


def test_a_changed_tree_is_marked_unless_only_results_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert git_commit(tmp_path / "missing") == "unknown"
    git("init")
    (tmp_path / "results").mkdir()
    files = [tmp_path / "code.py", tmp_path / "results" / "http.jsonl", tmp_path / "RESULTS.md"]
    for file in files:
        file.write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    clean = git_commit(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{12}", clean)
    files[1].write_text("2")
    files[2].write_text("2")
    assert git_commit(tmp_path) == clean
    files[0].write_text("2")
    assert git_commit(tmp_path) == clean + "+"


def test_this_machine_has_a_processor_and_memory() -> None:
    hardware = detect_hardware(gpu="one card")
    assert hardware.cpu
    assert hardware.memory_gib > 0.5
    assert str(hardware).endswith("GiB, one card")


@given(st.floats(min_value=-1e12, max_value=1e12, allow_nan=False))
def test_a_shown_value_is_within_half_a_per_mille(value: float) -> None:
    shown = float(format_value(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=5.1e-4)


def test_published_figures_stand_below_the_runs_of_their_bench(tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "evaluate-tiny.toml").write_text(
        'note = "theirs"\ncolumns = ["HR@10"]\n[systems]\n"A | B" = ["0.1"]\n'
    )
    assert "theirs" not in render(tmp_path)
    new_result("evaluate-tiny", [Row(workload="w", system="ours", value=0.2, unit="HR@10")]).append_to(tmp_path)
    page = render(tmp_path)
    assert page.index("ours") < page.index("theirs") < page.index("| A \\| B | 0.1 |")
    (tmp_path / "published" / "evaluate-tiny.toml").write_text(
        'note = ""\ncolumns = ["HR@10"]\n[systems]\nA = ["1", "2"]\n'
    )
    with pytest.raises(ValueError, match="A has 2 cells for 1 columns"):
        render(tmp_path)
