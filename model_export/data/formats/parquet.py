"""Parquet files of a user's own log."""

import io
from pathlib import Path

import polars as pl

from model_export.data.errors import DataError
from model_export.data.inputs import Inputs


def read_parquet(inputs: Inputs, file: Path) -> pl.DataFrame:
    """All columns, with `line` counting the rows from 1. `DataError` where the file is no Parquet."""
    try:
        frame = pl.read_parquet(io.BytesIO(inputs.read_bytes(file)))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file}: not a readable Parquet file: {reason}") from error
    return frame.drop("line", strict=False).with_row_index("line", offset=1).cast({"line": pl.Int64})
