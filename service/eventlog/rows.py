"""Rows of the event log: how they stand in a stream, and what they become in Parquet.

An entry of a stream has three fields: `k`, its kind; `u`, the pseudonym of its user; `d`, the rest as JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from zlib import crc32

import orjson
import pyarrow as pa

from service.domain import Event, Impression

NUM_BUCKETS: Final = 256
"""Of users; the keys of a bucket share a hash tag."""
FORMAT_VERSION: Final = 1

Kind = Literal["event", "impression", "forgotten"]
_KINDS: Final[dict[bytes, Kind]] = {b"e": "event", b"i": "impression", b"f": "forgotten"}

_TIME: Final = pa.timestamp("ms", tz="UTC")
SCHEMAS: Final[Mapping[Kind, pa.Schema]] = {
    "event": pa.schema(
        [
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("action", pa.string()),
            ("timestamp", _TIME),
            ("value", pa.float64()),
            ("event_id", pa.string()),
            ("recommendation_id", pa.string()),
            ("received", _TIME),
        ]
    ),
    "impression": pa.schema(
        [
            ("recommendation_id", pa.string()),
            ("user_id", pa.string()),
            ("timestamp", _TIME),
            ("continued_from", pa.string()),
            ("model_version", pa.string()),
            ("catalog_version", pa.string()),
            ("source", pa.string()),
            ("reason", pa.string()),
            ("beam_width", pa.int32()),
            ("item_ids", pa.list_(pa.string())),
            ("item_scores", pa.list_(pa.float64())),
            ("score", pa.float64()),
            ("reward", pa.float64()),
            ("propensity", pa.float64()),
            ("temperature", pa.float64()),
            ("seed", pa.uint32()),
        ]
    ),
    "forgotten": pa.schema([("user_id", pa.string()), ("timestamp", _TIME)]),
}
"""Columns of each kind's files. `user_id` is a pseudonym: `forgotten` names those whose rows are gone."""


def bucket_of(user_id: str) -> int:
    """Which of the buckets keeps the user."""
    return crc32(user_id.encode()) % NUM_BUCKETS


def bucket_tag(bucket: int) -> str:
    """The hash tag that the keys of a bucket share."""
    return f"{{b{bucket}}}"


def stream_key(bucket: int) -> str:
    """Of the stream that holds the bucket's rows."""
    return f"{bucket_tag(bucket)}l{FORMAT_VERSION}"


def pseudonym_key(user_id: str) -> str:
    """Of what the user is called in the log."""
    return f"{bucket_tag(bucket_of(user_id))}p{FORMAT_VERSION}:{user_id}"


def owner_key(bucket: int) -> str:
    """Of who drains the bucket's stream."""
    return f"{bucket_tag(bucket)}c{FORMAT_VERSION}"


def event_data(event: Event, received_ms: int) -> bytes:
    """The field `d` of an event."""
    return orjson.dumps(
        {
            "item_id": event.item_id,
            "action": event.action,
            "timestamp": event.timestamp_ms,
            "value": event.value,
            "event_id": event.event_id,
            "recommendation_id": event.recommendation_id,
            "received": received_ms,
        }
    )


def impression_data(impression: Impression) -> bytes:
    """The field `d` of an impression."""
    slate = impression.slate
    return orjson.dumps(
        {
            "recommendation_id": impression.recommendation_id,
            "timestamp": impression.timestamp_ms,
            "continued_from": impression.continued_from,
            "model_version": slate.model_version,
            "catalog_version": slate.catalog_version,
            "source": slate.source,
            "reason": slate.reason,
            "beam_width": slate.beam_width,
            "item_ids": [item.item_id for item in slate.items],
            "item_scores": [item.score for item in slate.items],
            "score": slate.score,
            "reward": slate.reward,
            "propensity": slate.propensity,
            "temperature": impression.temperature,
            "seed": slate.seed,
        }
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One row, by kind; `values` has every column of its schema."""

    kind: Kind
    user_id: str
    values: Mapping[str, Any]


def row_of(fields: Sequence[bytes]) -> Row:
    """The row of an entry's fields, as Redis gives them: names and values in turn.

    Raises:
        ValueError: these are not the fields of a row.
    """
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        kind, user_id = _KINDS[named[b"k"]], named[b"u"].decode()
        values = {**orjson.loads(named[b"d"]), "user_id": user_id}
    except (KeyError, orjson.JSONDecodeError, TypeError) as error:
        raise ValueError(f"an entry of the event log that is no row of format {FORMAT_VERSION}: {error!r}") from error
    return Row(kind, user_id, values)


def table_of(kind: Kind, rows: Sequence[Row]) -> pa.Table:
    """Rows of one kind as a table."""
    return pa.Table.from_pylist([dict(row.values) for row in rows], schema=SCHEMAS[kind])
