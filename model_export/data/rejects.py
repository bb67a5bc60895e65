"""Bad rows: taken out, counted and named by file and line."""

from pathlib import Path

import polars as pl

SCHEMA = {"file": pl.String, "line": pl.Int64, "reason": pl.String, "row": pl.String}
MAX_ROW_CHARACTERS = 500


class Rejects:
    """Collects the bad rows of one `prepare`.

    Frames that pass through hold `line` (1-based, Int64) and may hold `row` (the line as it stands in the file).
    """

    def __init__(self) -> None:
        self._frames: list[pl.DataFrame] = []

    def sift(self, frame: pl.DataFrame, file: Path, reason: pl.Expr) -> pl.DataFrame:
        """Return the rows for which `reason` is null and record the others with their reason."""
        reasons = frame.select(reason.cast(pl.String).alias("reason"))["reason"]
        bad = reasons.is_not_null()
        if not bad.any():
            return frame
        rows = frame.filter(bad)
        if "row" in rows.columns:
            text = rows["row"]
        else:
            text = rows.select(pl.struct(pl.exclude("line")).struct.json_encode())[:, 0]
        self._frames.append(
            pl.DataFrame(
                {
                    "file": [file.name] * rows.height,
                    "line": rows["line"],
                    "reason": reasons.filter(bad),
                    "row": text.str.slice(0, MAX_ROW_CHARACTERS),
                },
                schema=SCHEMA,
            )
        )
        return frame.filter(~bad)

    def frame(self) -> pl.DataFrame:
        """All bad rows, by file and line."""
        if not self._frames:
            return pl.DataFrame(schema=SCHEMA)
        return pl.concat(self._frames).sort("file", "line", maintain_order=True)
