"""Format `movielens`: 100k (`u.data`, `u.item`), the csv form (`ratings.csv`, `movies.csv`), 1M (`*.dat`, `::`)."""

from pathlib import Path

import polars as pl

from model_export.data.config import PrepareConfig
from model_export.data.delimited import read_delimited
from model_export.data.errors import DataError
from model_export.data.events import clean_events
from model_export.data.inputs import Inputs, plain_name
from model_export.data.items import clean_items
from model_export.data.log import EventLog
from model_export.data.rejects import Rejects

RATING_FILES = ("u.data", "ratings.csv", "ratings.dat")
RATING_COLUMNS = ("user_id", "item_id", "value", "timestamp")
CSV_COLUMNS = ("userId", "movieId", "rating", "timestamp")
NO_GENRE = ("unknown", "(no genres listed)", "")
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def read_movielens(inputs: Inputs, _config: PrepareConfig, rejects: Rejects) -> EventLog:
    """Ratings as action `rate` with the stars as value; titles; genres as tags, the first one as group."""
    file = inputs.main or inputs.require(*RATING_FILES)
    ending = plain_name(file).rpartition(".")[2]
    if ending not in ("data", "csv", "dat"):
        raise DataError(f"{file}: not a MovieLens ratings file ({', '.join(RATING_FILES)})")
    if ending == "csv":
        raw = read_delimited(inputs, file, rejects, separator=",", required=CSV_COLUMNS)
        raw = raw.rename(dict(zip(CSV_COLUMNS, RATING_COLUMNS, strict=True)))
    else:
        separator = "\t" if ending == "data" else "::"
        raw = read_delimited(inputs, file, rejects, separator=separator, columns=RATING_COLUMNS)
    raw = rejects.sift(raw, file, pl.when(pl.col("value") == "").then(pl.lit("rating is empty")))
    return EventLog(
        events=clean_events(raw, file, rejects, default_action="rate"),
        items=_read_items(inputs, ending, rejects),
        default_action="rate",
        units={"rate": "stars"},
    )


def _read_items(inputs: Inputs, ending: str, rejects: Rejects) -> pl.DataFrame | None:
    file = inputs.optional({"data": "u.item", "csv": "movies.csv", "dat": "movies.dat"}[ending])
    if file is None:
        return None
    if ending == "data":
        return _read_flagged_items(inputs, file, rejects)
    if ending == "csv":
        raw = read_delimited(inputs, file, rejects, separator=",", required=("movieId", "title", "genres"))
        raw = raw.rename({"movieId": "item_id"})
    else:
        return read_movies_dat(inputs, file, rejects)
    return clean_items(_with_genres(raw), file, rejects)


def read_movies_dat(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    """`movies.dat` of MovieLens 1M: `id::title::genre|genre`, latin-1."""
    columns = ("item_id", "title", "genres")
    raw = read_delimited(inputs, file, rejects, separator="::", columns=columns, encoding="latin-1")
    return clean_items(_with_genres(raw), file, rejects)


def _read_flagged_items(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    """`u.item`: id, title, two dates, a URL and 19 genre flags of 0 or 1."""
    columns = ("item_id", "title", "release_date", "video_date", "url", *GENRES_100K)
    raw = read_delimited(inputs, file, rejects, separator="|", columns=columns, encoding="latin-1")
    set_genres = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES_100K]
    return clean_items(
        _with_genres(raw.with_columns(genres=pl.concat_str(set_genres, separator="|", ignore_nulls=True))),
        file,
        rejects,
    )


def _with_genres(raw: pl.DataFrame) -> pl.DataFrame:
    tags = pl.col("genres").str.split("|").list.eval(pl.element().filter(~pl.element().is_in(list(NO_GENRE))))
    return raw.with_columns(tags=tags).with_columns(group=pl.col("tags").list.first())
