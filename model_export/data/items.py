"""Items: checking an items file, and the catalog that a data set's items make."""

from pathlib import Path

import polars as pl

from model_export.data.events import id_fault
from model_export.data.log import ITEM_SCHEMA
from model_export.data.rejects import Rejects


def clean_items(raw: pl.DataFrame, file: Path, rejects: Rejects) -> pl.DataFrame:
    """Items of one file in `ITEM_SCHEMA`; bad rows and repeated ids go to `rejects`.

    `raw` has `line`, `item_id` and any other column of `ITEM_SCHEMA`, already of its type, and perhaps `row`.
    """
    raw = rejects.sift(raw, file, id_fault("item_id"))
    first_line = pl.col("line").first().over("item_id")
    is_repeat = pl.col("line") != first_line
    raw = rejects.sift(raw, file, pl.when(is_repeat).then(pl.format("item_id repeats line {}", first_line)))
    if "embedding" in raw.columns:
        raw = _sift_embeddings(raw, file, rejects)
    return raw.select(
        pl.col("item_id"),
        _text(raw, "title"),
        _text(raw, "text"),
        (pl.col("tags") if "tags" in raw.columns else pl.lit(None))
        .cast(ITEM_SCHEMA["tags"])
        .fill_null([])
        .alias("tags"),
        _text(raw, "group"),
        (pl.col("available").fill_null(True) if "available" in raw.columns else pl.lit(True)).alias("available"),
        (pl.col("embedding") if "embedding" in raw.columns else pl.lit(None))
        .cast(ITEM_SCHEMA["embedding"])
        .alias("embedding"),
    )


def _text(raw: pl.DataFrame, column: str) -> pl.Expr:
    text = pl.col(column).cast(pl.String) if column in raw.columns else pl.lit(None, dtype=pl.String)
    return text.fill_null("").alias(column)


def _sift_embeddings(raw: pl.DataFrame, file: Path, rejects: Rejects) -> pl.DataFrame:
    """The first embedding sets the length; others must agree and be finite."""
    embedding = pl.col("embedding")
    lengths = raw["embedding"].drop_nulls().list.len()
    length = int(lengths[0]) if len(lengths) else 0
    return rejects.sift(
        raw,
        file,
        pl.when(embedding.is_null())
        .then(None)
        .when(embedding.list.len() != length)
        .then(pl.format(f"embedding has {{}} numbers where the first has {length}", embedding.list.len()))
        .when(~embedding.list.eval(pl.element().is_finite() & pl.element().is_not_null()).list.all())
        .then(pl.lit("embedding holds a number that is not finite")),
    )


def build_catalog(events: pl.DataFrame, items: pl.DataFrame | None, *, keep_unseen: bool) -> pl.DataFrame:
    """The items of `items.parquet`, in the order that defines the item index.

    First the rows of the items file, in its order; then, sorted by id, the items that only events name.
    """
    seen = events.select("item_id").unique()
    if items is None:
        items = pl.DataFrame(schema=ITEM_SCHEMA)
    known = items if keep_unseen else items.join(seen, on="item_id", how="semi", maintain_order="left")
    only_seen = seen.join(items, on="item_id", how="anti").sort("item_id")
    extra = only_seen.with_columns(
        title=pl.lit(""),
        text=pl.lit(""),
        tags=pl.lit([], dtype=ITEM_SCHEMA["tags"]),
        group=pl.lit(""),
        available=pl.lit(True),
        embedding=pl.lit(None, dtype=ITEM_SCHEMA["embedding"]),
    )
    return pl.concat([known.cast(ITEM_SCHEMA), extra.select(list(ITEM_SCHEMA)).cast(ITEM_SCHEMA)])
