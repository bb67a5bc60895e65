"""What several fits need, made once: tokenizations, embeddings, trainings, kept by the hash of what they come from."""

import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_export.data.prepared import PreparedData
from model_export.tokenizer.config import TokenizerConfig
from model_export.tokenizer.embeddings import embed_items
from model_export.tokenizer.stage import tokenize
from model_export.tokenizer.tokenization import Tokenization
from model_export.trials.plan import digest


class Shared:
    """A folder that the fits of all models use, side by side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tokenization(self, config: TokenizerConfig, prepared: PreparedData) -> Tokenization:
        """The sids of a configuration on a data set."""

        def make(out: Path) -> None:
            tokenize(config, prepared, out)

        return Tokenization.load(self._made("tokenize", config, prepared, make))

    def embeddings(self, config: TokenizerConfig, prepared: PreparedData) -> npt.NDArray[np.float32]:
        """Item embeddings `[N, D]` of a configuration, without sids."""

        def make(out: Path) -> None:
            is_train_E = prepared.train_events()
            found = embed_items(config, prepared.items, prepared.item_E[is_train_E], prepared.segment_E[is_train_E])
            np.save(out / "embeddings.npy", found.vectors_ND)

        loaded: npt.NDArray[np.float32] = np.load(self._made("embed", config, prepared, make) / "embeddings.npy")
        return loaded

    def trained(self, stage: str, made_from: list[Any], train: Callable[[Path], None]) -> Path:
        """The folder of a training: run to its end by one process alone, from what a killed one left there."""
        folder = self.folder / f"{stage}-{digest(made_from)}"
        with locked(folder.with_suffix(".lock")):
            if not (folder / "done").exists():
                train(folder)
                (folder / "done").touch()
        return folder

    def _made(self, stage: str, config: TokenizerConfig, prepared: PreparedData, make: Callable[[Path], None]) -> Path:
        """The folder of a result: made where it is missing, by one process alone, and renamed when it is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f"{stage}-{digest([dataclasses.asdict(config), data_digest(prepared)])}"
        with locked(place.with_suffix(".lock")):
            if not place.exists():
                partial = place.with_name(f".{place.name}.{os.getpid()}")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                make(partial)
                partial.rename(place)
        return place


def data_digest(prepared: PreparedData) -> str:
    """What a fit reads: the log, how it was prepared, and whether validation belongs to training."""
    meta = prepared.meta
    known: list[Any] = [meta["data_sha256"], meta.get("config"), meta.get("refit", False), prepared.num_events]
    return digest(known)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
