"""Lists that a recommender gave, kept in a file: what is trained in one process is compared in another.

Shapes: E examples, K length of a list.
"""

import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_export.data.examples import Examples
from model_export.evaluate.recommender import Items, Recommender
from model_export.evaluate.report import Level
from model_export.evaluate.samples import Sample
from model_export.evaluate.sequences import Int


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedLists:
    """A recommender that repeats lists; it knows the examples it was recorded on and no others."""

    name: str
    key_E: dict[Level, Int]
    """Where the targets of the examples start, ascending."""
    list_EK: dict[Level, Items]
    """Rankings at `item`, slates at `slate`."""
    seconds: dict[Level, float]
    """Wall-clock time that the lists took when they were made."""

    @classmethod
    def record(
        cls, recommender: Recommender, samples: dict[Level, Sample], *, num_ranked: int, slate_size: int
    ) -> "RecordedLists":
        """Asks for every list of both levels."""
        lists: dict[Level, Items] = {}
        keys: dict[Level, Int] = {}
        seconds: dict[Level, float] = {}
        for level, sample in samples.items():
            order = np.argsort(sample.examples.target_start, kind="stable")
            examples = sample.examples[order]
            started_s = time.perf_counter()
            if level == "item":
                lists[level] = recommender.rank(examples, num_ranked)
            else:
                lists[level] = recommender.slates(examples, slate_size)
            seconds[level] = time.perf_counter() - started_s
            keys[level] = examples.target_start
        return cls(name=recommender.name, key_E=keys, list_EK=lists, seconds=seconds)

    def rank(self, examples: Examples, k: int) -> Items:
        """The k first of what was ranked. `ValueError` for an example that was not recorded, or a longer list."""
        return self._lists("item", examples, k)

    def slates(self, examples: Examples, k: int) -> Items:
        """The recorded slates. `ValueError` for an example that was not recorded, or a longer slate."""
        return self._lists("slate", examples, k)

    def _lists(self, level: Level, examples: Examples, k: int) -> Items:
        keys, lists = self.key_E[level], self.list_EK[level]
        place_E = np.minimum(np.searchsorted(keys, examples.target_start), max(len(keys) - 1, 0))
        if k > lists.shape[1] or not np.array_equal(keys[place_E], examples.target_start):
            raise ValueError(f"{self.name}: the {level} lists of these examples were not recorded")
        return lists[place_E, :k]

    def save(self, path: Path) -> None:
        """Writes one `.npz`, in one rename."""
        partial = path.with_name(f".{path.name}")
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                name=np.array(self.name),
                seconds=np.array([self.seconds["item"], self.seconds["slate"]]),
                item_key=self.key_E["item"],
                item_list=self.list_EK["item"],
                slate_key=self.key_E["slate"],
                slate_list=self.list_EK["slate"],
            )
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "RecordedLists":
        """Reads what `save` wrote. `ValueError` where the file is damaged."""
        levels: tuple[Level, Level] = ("item", "slate")
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return cls(
                    name=str(file["name"]),
                    key_E={level: file[f"{level}_key"] for level in levels},
                    list_EK={level: file[f"{level}_list"] for level in levels},
                    seconds=dict(zip(levels, file["seconds"].tolist(), strict=True)),
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not recorded lists: {error}") from error
