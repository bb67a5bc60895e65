"""The folder that the event log is drained into: Parquet files that appear, and change, all at once or not at all.

    events/00000012.parquet        impressions/00000012.parquet        forgotten/00000012.parquet
    collector.json                 how far each stream is drained, and the files of the last commit
    collector.lock                 held by the process that writes here

A commit writes its files under hidden names, syncs them, and then replaces `collector.json`, which is the moment that
counts; then the files get their names. Who is killed before that moment leaves hidden files that the next one deletes;
who is killed after it leaves such that the next one names. So every file that can be seen is whole and committed.
"""

import fcntl
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import EventLogDamaged
from service.eventlog.rows import SCHEMAS, Kind, Row, table_of

STATE_FILE: Final = "collector.json"
_LOCK_FILE: Final = "collector.lock"
_FOLDERS: Final[Mapping[Kind, str]] = {"event": "events", "impression": "impressions", "forgotten": "forgotten"}
_ROWS_OF_USERS: Final[tuple[Kind, ...]] = ("event", "impression")


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int = 1
    collector: str
    """Name of this folder's collector, by which the streams know it."""
    sequence: int = 0
    """Commits so far."""
    cursors: dict[int, str] = {}
    """Id of the last entry of each bucket that is here."""
    pending: tuple[str, ...] = ()
    """Files of the last commit, which still may have to be named."""


class LogDataset:
    """One folder, written by one process at a time."""

    def __init__(self, folder: Path) -> None:
        """Made by `opened`."""
        self._folder = folder
        self._state = _State(collector=uuid4().hex)

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator["LogDataset"]:
        """The folder, made if it is not there, and brought in order.

        Raises:
            EventLogDamaged: another process writes here, or `collector.json` is not what it should be.
        """
        for name in _FOLDERS.values():
            (folder / name).mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK_FILE).open("a") as lock:
            _lock(lock, folder)
            dataset = cls(folder)
            dataset._recover()
            yield dataset

    @property
    def collector(self) -> str:
        """Name of this folder's collector."""
        return self._state.collector

    @property
    def cursors(self) -> Mapping[int, str]:
        """Id of the last entry of each bucket that is here."""
        return self._state.cursors

    def add(self, rows: Sequence[Row], cursors: Mapping[int, str]) -> None:
        """Commits rows, and that they reach to `cursors`; rows of users who are forgotten by them go, old ones too.

        A user's rows before the one that forgets it are gone; after it there are none of this pseudonym.
        """
        forgotten = {row.user_id for row in rows if row.kind == "forgotten"}
        name = f"{self._state.sequence + 1:08d}.parquet"
        pending = self._rewrite_without(forgotten) if forgotten else []
        for kind, folder in _FOLDERS.items():
            kept = [row for row in rows if row.kind == kind and (kind == "forgotten" or row.user_id not in forgotten)]
            if kept:
                pending.append(self._write(f"{folder}/{name}", table_of(kind, kept)))
        self._commit(
            self._state.model_copy(
                update={
                    "sequence": self._state.sequence + 1,
                    "cursors": {**self._state.cursors, **cursors},
                    "pending": tuple(pending),
                }
            )
        )

    def begin_anew(self, buckets: Collection[int]) -> None:
        """Commits that nothing of these buckets' streams is here: their cursors are of others."""
        cursors = {bucket: cursor for bucket, cursor in self._state.cursors.items() if bucket not in buckets}
        if cursors != self._state.cursors:
            self._commit(self._state.model_copy(update={"cursors": cursors}))

    def _rewrite_without(self, forgotten: set[str]) -> list[str]:
        """Writes again, without these users, the files that hold some of them."""
        gone = pa.array(sorted(forgotten), pa.string())
        rewritten = []
        for kind in _ROWS_OF_USERS:
            for file in sorted((self._folder / _FOLDERS[kind]).glob("[0-9]*.parquet")):
                users = pq.read_table(file, columns=["user_id"])["user_id"]
                stays = pc.invert(pc.is_in(users, value_set=gone))
                if not pc.all(stays).as_py():
                    table = pq.read_table(file, schema=SCHEMAS[kind]).filter(stays)
                    rewritten.append(self._write(f"{_FOLDERS[kind]}/{file.name}", table))
        return rewritten

    def _write(self, name: str, table: pa.Table) -> str:
        with self._hidden(name, self._state.sequence + 1).open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            _sync(file)
        return name

    def _commit(self, state: _State) -> None:
        for folder in _FOLDERS.values():
            _sync_folder(self._folder / folder)
        new = self._folder / f".{STATE_FILE}"
        with new.open("w") as file:
            file.write(state.model_dump_json())
            _sync(file)
        new.replace(self._folder / STATE_FILE)
        _sync_folder(self._folder)
        self._state = state
        self._name_pending()

    def _name_pending(self) -> None:
        for name in self._state.pending:
            with suppress(FileNotFoundError):  # named already, before a kill
                self._hidden(name, self._state.sequence).replace(self._folder / name)
        for folder in _FOLDERS.values():
            _sync_folder(self._folder / folder)

    def _hidden(self, name: str, sequence: int) -> Path:
        """Of a file of a commit. Its number is part of it: the last commit's must not be taken for one begun since."""
        file = self._folder / name
        return file.with_name(f".{file.name}.{sequence}")

    def _recover(self) -> None:
        file = self._folder / STATE_FILE
        if file.exists():
            try:
                self._state = _State.model_validate_json(file.read_bytes())
            except ValidationError as error:
                raise EventLogDamaged(f"{file} is not what a collector writes: {error.errors()[0]['msg']}") from error
            self._name_pending()
        elif any(self._folder.glob("*/*.parquet")):
            raise EventLogDamaged(f"{self._folder} holds Parquet files, but no {STATE_FILE} that says how far they go")
        else:
            self._commit(self._state)  # the name stands before any stream hears it
        for left in [*self._folder.glob(".*.json"), *self._folder.glob("*/.*.parquet.*")]:
            left.unlink()


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise EventLogDamaged(f"another process collects into {folder}") from error


def _sync(file: IO[str] | IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
