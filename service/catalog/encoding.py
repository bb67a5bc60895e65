"""From a new item to what the model knows items by: its embedding, and from that its sid and its vector.

Legend: A items, E embedding width, D width of the model's item vectors, V codes of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from service.bundle import Bundle
from service.bundle.item_encoder import ItemEncoder, item_text, unit_rows
from service.bundle.reader import CODEBOOKS_FILE, ITEM_ENCODER_FILE, ITEM_VECTORS_FILE
from service.catalog.change import ItemChange
from service.domain import Item
from service.errors import BundleError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewItemEncoder:
    """The torch-free half of the tokenizer."""

    encoder: ItemEncoder
    codebooks: tuple[FloatArray, ...]
    """Per level [V, E]."""
    projection_DE: FloatArray | None = None
    centre_E: FloatArray | None = None

    @classmethod
    def load(cls, bundle: Bundle) -> "NewItemEncoder | None":
        """From a bundle; None where it was exported without what new items need.

        Raises:
            BundleError: a file that the manifest names is damaged.
        """
        if not {ITEM_ENCODER_FILE, CODEBOOKS_FILE} <= bundle.manifest.files.keys():
            return None
        codebooks = _arrays(bundle, CODEBOOKS_FILE)
        vectors = _arrays(bundle, ITEM_VECTORS_FILE) if bundle.manifest.item_vector_width else {}
        try:
            return cls(
                encoder=ItemEncoder.load(bundle.path / ITEM_ENCODER_FILE),
                codebooks=tuple(codebooks[f"level_{level}"] for level in range(bundle.manifest.num_levels)),
                projection_DE=vectors["projection_DE"] if vectors else None,
                centre_E=vectors["centre_E"] if vectors else None,
            )
        except KeyError as error:
            raise BundleError(f"{bundle.path}: cannot place new items: the array {error} is missing") from error

    def refusal(self, change: ItemChange) -> str:
        """Why no place can be found for a new item; empty: it can."""
        if change.embedding and len(change.embedding) != self.encoder.width:
            return f"this model's embeddings have {self.encoder.width} values, not {len(change.embedding)}"
        if not change.says_what_it_is:
            return "a new item needs a title, a text, tags or an embedding to be placed by"
        return ""

    def embeddings(self, items: Sequence[tuple[Item, tuple[float, ...] | None]]) -> FloatArray:
        """Of items by the vector given with each, else by title, text and tags [A, E].

        A vector of another width is another model's: the item is known by its text then.
        """
        embeddings_AE = np.empty((len(items), self.encoder.width), dtype=np.float32)
        fits = [given is not None and len(given) == self.encoder.width for _, given in items]
        by_text = [place for place, fit in enumerate(fits) if not fit]
        by_vector = [place for place, fit in enumerate(fits) if fit]
        if by_text:
            texts = [item_text(item.title, item.text, item.tags) for item, _ in (items[place] for place in by_text)]
            embeddings_AE[by_text] = self.encoder.encode(texts)
        if by_vector:
            given_AE = np.array([items[place][1] for place in by_vector], dtype=np.float32)
            embeddings_AE[by_vector] = self.encoder.encode_vectors(given_AE)
        return embeddings_AE

    def vectors(self, embeddings_AE: FloatArray) -> FloatArray | None:
        """The model's vectors [A, D], of length 1; None where it has none."""
        if self.projection_DE is None or self.centre_E is None:
            return None
        return unit_rows((embeddings_AE - self.centre_E) @ self.projection_DE.T)


def _arrays(bundle: Bundle, name: str) -> dict[str, FloatArray]:
    try:
        with (bundle.path / name).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise BundleError(f"{bundle.path / name}: cannot be read: {error}") from error
