"""Renders `RESULTS.md` from `results/*.jsonl`: the one page that every figure of the documentation stands on."""

import tomllib
from pathlib import Path

from loadtests.bench.result import RESULTS_DIR, ROOT, BenchResult, format_value, read_results

PAGE = ROOT / "RESULTS.md"
_BY_SYSTEM = ("trials-", "reward-")
_PARTS = ("low", "high", "std")

_HEAD = """# Results

Every measured run that was recorded, rendered from `results/*.jsonl` by `oneslate results`; do not edit by hand.
Newest first. A commit that ends in `+` had local changes. Times depend on the machine and on what else it did;
ratios compare two sides of one run.
"""


def render(folder: Path = RESULTS_DIR) -> str:
    """The page as Markdown, from every `*.jsonl` of the folder, by bench name.

    Raises:
        ValueError: a line is not a result, named by file and line.
    """
    parts = [_HEAD]
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        parts.append("No run is recorded yet.\n")
    for path in files:
        runs = read_results(path)
        parts.append(f"## {path.stem}\n")
        runs.sort(key=lambda run: run.date)
        runs.reverse()  # not sort(reverse=True): of two runs in one second the later line comes first
        parts.extend(_section(run) for run in runs)
        published = folder / "published" / f"{path.stem}.toml"
        if published.exists():
            parts.append(_published(published))
    return "\n".join(parts)


def write(folder: Path = RESULTS_DIR, page: Path = PAGE) -> Path:
    """Renders and writes the page; gives back its path."""
    page.write_text(render(folder), encoding="utf-8")
    return page


def _section(run: BenchResult) -> str:
    lines = [
        f"### {run.bench}, {run.date}",
        "",
        f"- commit: `{run.commit}`",
        f"- hardware: {run.hardware}",
        f"- command: `{run.command}`",
    ]
    if run.caveat:
        lines.append(f"- caveat: {' '.join(run.caveat.split())}")
    lines += _by_system(run) if run.bench.startswith(_BY_SYSTEM) else _by_row(run)
    if run.ratios:
        lines += ["", "| ratio | value |", "|---|---:|"]
        lines += [f"| {_cell(name)} | {format_value(ratio)} |" for name, ratio in run.ratios.items()]
    return "\n".join(lines) + "\n"


def _by_row(run: BenchResult) -> list[str]:
    return ["", "| workload | system | value | unit |", "|---|---|---:|---|"] + [
        f"| {_cell(row.workload)} | {_cell(row.system)} | {format_value(row.value)} | {_cell(row.unit)} |"
        for row in run.rows
    ]


def _by_system(run: BenchResult) -> list[str]:
    """A table a workload: a line a system, a column a unit; `x low`, `x high` and `x std` stand in the cell of `x`."""
    lines = []
    for workload in dict.fromkeys(row.workload for row in run.rows):
        rows = [row for row in run.rows if row.workload == workload]
        values = {(row.system, row.unit): row.value for row in rows}
        units = [unit for unit in dict.fromkeys(row.unit for row in rows) if unit.rpartition(" ")[2] not in _PARTS]
        lines += ["", f"| {_cell(workload)} | {' | '.join(map(_cell, units))} |", f"|---|{'---:|' * len(units)}"]
        for system in dict.fromkeys(row.system for row in rows):
            cells = [_figure(values, system, unit) for unit in units]
            lines.append(f"| {_cell(system)} | {' | '.join(cells)} |")
    return lines


def _figure(values: dict[tuple[str, str], float], system: str, unit: str) -> str:
    """`mean [low, high] ± std`, as far as it is known."""
    if (system, unit) not in values:
        return "-"
    low, high, std = (values.get((system, f"{unit} {part}")) for part in _PARTS)
    text = format_value(values[system, unit])
    if low is not None and high is not None:
        text += f" [{format_value(low)}, {format_value(high)}]"
    return text if std is None else f"{text} ± {format_value(std)}"


def _published(path: Path) -> str:
    """Other people's figures beside ours: a `note`, `columns`, and a table `systems` of one list of cells each."""
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    columns = values["columns"]
    lines = ["### Published by others", "", " ".join(values["note"].split()), ""]
    lines += [f"| system | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for system, cells in values["systems"].items():
        if len(cells) != len(columns):
            raise ValueError(f"{path}: {system} has {len(cells)} cells for {len(columns)} columns")
        lines.append(f"| {_cell(system)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
