"""Text files with one row a line: numbered lines, split into named columns; bad lines are rejected by number."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from model_export.data.errors import DataError
from model_export.data.inputs import Inputs
from model_export.data.rejects import Rejects


def read_lines(inputs: Inputs, file: Path, encoding: str = "utf-8-sig") -> pl.DataFrame:
    """Columns `line` (1-based) and `row`, without empty lines. `DataError` where there are none."""
    rows = pl.Series("row", inputs.read_text(file, encoding).split("\n"), dtype=pl.String)
    lines = pl.DataFrame({"line": pl.int_range(1, len(rows) + 1, dtype=pl.Int64, eager=True), "row": rows})
    lines = lines.with_columns(pl.col("row").str.strip_suffix("\r")).filter(pl.col("row") != "")
    if lines.height == 0:
        raise DataError(f"{file}: the file is empty")
    return lines


def read_delimited(
    inputs: Inputs,
    file: Path,
    rejects: Rejects,
    *,
    separator: str,
    columns: Sequence[str] = (),
    required: Sequence[str] = (),
    encoding: str = "utf-8-sig",
) -> pl.DataFrame:
    """Columns `line`, `row` and one String column per field.

    `columns` names the fields of a file without a header line. A file with a header must have the `required` columns,
    else `DataError`; its fields may be quoted as in RFC 4180. Rows with too few or too many fields are rejected.
    """
    lines = read_lines(inputs, file, encoding)
    if columns:
        return _split(lines, file, rejects, separator, columns)
    header = [name.strip().strip('"') for name in lines["row"][0].split(separator)]
    require_columns(file, header, required)
    if lines["row"].str.contains('"', literal=True).any():
        return _parse_quoted(inputs.read_text(file, encoding), file, rejects, separator, header)
    return _split(lines[1:], file, rejects, separator, header)


def require_columns(file: Path, columns: Sequence[str], required: Sequence[str]) -> None:
    """`DataError` that names the file, the first missing or repeated column and those that are there."""
    for name in required:
        if name not in columns:
            raise DataError(f"{file}: no column {name!r} (columns: {', '.join(columns)})")
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"{file}: column {name!r} appears more than once")


def guess_separator(inputs: Inputs, file: Path) -> str:
    """The separator of a file with a header line: TAB, semicolon or comma, whichever the header has most of."""
    header = str(read_lines(inputs, file)["row"][0])
    return max((",", "\t", ";"), key=header.count)


def _split(lines: pl.DataFrame, file: Path, rejects: Rejects, separator: str, columns: Sequence[str]) -> pl.DataFrame:
    num_fields = pl.col("row").str.count_matches(separator, literal=True) + 1
    lines = rejects.sift(lines, file, _wrong_count(num_fields, len(columns)))
    fields = pl.col("row").str.split_exact(separator, len(columns) - 1).struct.rename_fields(list(columns))
    return lines.with_columns(fields.alias("fields")).unnest("fields")


def _wrong_count(num_fields: pl.Expr, expected: int) -> pl.Expr:
    return pl.when(num_fields != expected).then(pl.format(f"expected {expected} fields, found {{}}", num_fields))


def _parse_quoted(text: str, file: Path, rejects: Rejects, separator: str, header: Sequence[str]) -> pl.DataFrame:
    """Python's csv module: slower than polars' split, but it keeps line numbers where quoted fields hold newlines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    numbers: list[int] = []
    rows: list[str] = []
    fields: list[list[str]] = []
    counts: list[int] = []
    line = 1
    try:
        for row in reader:
            if row and line > 1:
                numbers.append(line)
                rows.append(separator.join(row))
                counts.append(len(row))
                fields.append((row + [""] * len(header))[: len(header)])
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{file}, line {line}: {error}") from error
    table = pl.DataFrame(fields, schema=dict.fromkeys(header, pl.String), orient="row")
    frame = table.with_columns(
        pl.Series("line", numbers, dtype=pl.Int64),
        pl.Series("row", rows, dtype=pl.String),
        pl.Series("num_fields", counts, dtype=pl.Int64),
    )
    return rejects.sift(frame, file, _wrong_count(pl.col("num_fields"), len(header))).drop("num_fields")
