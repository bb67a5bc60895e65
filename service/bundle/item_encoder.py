"""From an item's text or vector to the tokenizer's embedding space, and from there to a free sid, with numpy alone.

The trainer fits with scikit-learn and stores the arrays; the service repeats the arithmetic without it, so that a new
item gets its sid from the same pipeline: words -> TF-IDF -> truncated SVD -> unit length -> (where the tokenizer's
embedding is not the text's own) a ridge projection.

Shapes: N items, W words, T text width, D embedding width, L levels, V codes, M taken sids.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from service.errors import BundleError, CatalogError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

# scikit-learn's default token pattern: words of two or more letters or digits
WORD = re.compile(r"(?u)\b\w\w+\b")
FORMAT = 1
BEAM_WIDTH = 16


def item_text(title: str, text: str, tags: Sequence[str]) -> str:
    """The one text of an item that is encoded: title, text and tags."""
    return " ".join(part for part in (title, text, *tags) if part)


def unit_rows(vectors_ND: npt.NDArray[np.floating]) -> FloatArray:
    """Rows of length one; a zero row stays zero."""
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.where(norms_N1 > 0, norms_N1, 1), dtype=np.float32)


def has_value(vectors_ND: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Which rows are not all zero [N]."""
    return np.asarray((vectors_ND != 0).any(axis=1), np.bool_)


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemEncoder:
    """Encodes texts and given vectors into the space of the codebooks."""

    words: tuple[str, ...]
    """Vocabulary, in the order of `idf_W`."""
    idf_W: FloatArray
    components_TW: FloatArray
    """Truncated SVD."""
    projection_TD: FloatArray | None
    """Ridge projection from text to embedding; None: the text embedding is the embedding."""
    offset_D: FloatArray | None
    """Added after the projection."""
    default_D: FloatArray
    """Embedding of an item without a known word: the mean of all items."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_column", {word: column for column, word in enumerate(self.words)})

    @property
    def width(self) -> int:
        """D."""
        return len(self.default_D)

    def text_vectors(self, texts: Sequence[str]) -> FloatArray:
        """Unit text vectors [N, T], as the fitted TF-IDF (sublinear counts, l2) and SVD give; zero without a word."""
        column: dict[str, int] = self._column  # type: ignore[attr-defined]
        vectors_NT = np.zeros((len(texts), len(self.components_TW)), np.float32)
        for row, text in enumerate(texts):
            counts = Counter(column[word] for word in WORD.findall(text.lower()) if word in column)
            if counts:
                columns = np.fromiter(counts, np.int64, len(counts))
                weights = (1.0 + np.log(np.fromiter(counts.values(), np.float64, len(counts)))) * self.idf_W[columns]
                vectors_NT[row] = self.components_TW[:, columns] @ (weights / np.linalg.norm(weights))
        return unit_rows(vectors_NT)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings [N, D] of texts (see `item_text`)."""
        vectors_NT = self.text_vectors(texts)
        has_words_N = has_value(vectors_NT)
        if self.projection_TD is None:
            vectors_ND = vectors_NT
        else:
            vectors_ND = vectors_NT @ self.projection_TD
            if self.offset_D is not None:
                vectors_ND = vectors_ND + self.offset_D
            vectors_ND = unit_rows(vectors_ND)
        return np.where(has_words_N[:, None], vectors_ND, self.default_D).astype(np.float32)

    def encode_vectors(self, vectors_ND: npt.NDArray[np.floating]) -> FloatArray:
        """Embeddings [N, D] of given vectors: unit length, the default for a zero row.

        Raises:
            ValueError: another width than the codebooks', or a value that is not finite.
        """
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] != self.width:
            raise ValueError(f"embedding must have {self.width} values, not {vectors_ND.shape[-1]}")
        if not np.isfinite(vectors_ND).all():
            raise ValueError("embedding holds a value that is not finite")
        return np.where(has_value(vectors_ND)[:, None], unit_rows(vectors_ND), self.default_D).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Writes one .npz without pickles; words are UTF-8, one a line."""
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "format": np.array(FORMAT),
            "words": np.frombuffer("\n".join(self.words).encode(), np.uint8),
            "idf": self.idf_W,
            "components": self.components_TW,
            "default": self.default_D,
        }
        if self.projection_TD is not None:
            arrays["projection"] = self.projection_TD
        if self.offset_D is not None:
            arrays["offset"] = self.offset_D
        np.savez(Path(path), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> "ItemEncoder":
        """Reads what `save` wrote.

        Raises:
            BundleError: the file is missing, damaged or of another format.
        """
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            if int(arrays["format"]) != FORMAT:
                raise BundleError(f"{path}: item encoder format {int(arrays['format'])}, this version reads {FORMAT}")
            text = arrays["words"].tobytes().decode()
            return cls(
                words=tuple(text.split("\n")) if text else (),
                idf_W=arrays["idf"],
                components_TW=arrays["components"],
                projection_TD=arrays.get("projection"),
                offset_D=arrays.get("offset"),
                default_D=arrays["default"],
            )
        except (OSError, BadZipFile, KeyError, UnicodeDecodeError, TypeError, EOFError) as error:
            raise BundleError(f"{path}: not a readable item encoder: {error}") from error
        except ValueError as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{path}: not a readable item encoder: {error}") from error


def assign_new(
    vector_D: FloatArray,
    codebooks: Sequence[FloatArray],
    taken_ML: IntArray,
    max_branch: Sequence[int],
    beam_width: int = BEAM_WIDTH,
) -> IntArray:
    """Nearest free sid [L] for a new item: a beam over the levels that only follows prefixes with a free sid below.

    `codebooks` are [V_l, D]; `taken_ML` holds the sids in use, sorted row by row; a prefix gets no child beyond
    `max_branch[l]`.

    Raises:
        CatalogError: no sid is free.
    """
    residuals_BD = vector_D[None].astype(np.float32)
    # beams: a prefix and the range of taken sids that share it
    beams: list[tuple[tuple[int, ...], int, int]] = [((), 0, len(taken_ML))]
    for level, codebook_VD in enumerate(codebooks):
        below = math.prod(max_branch[level + 1 :])
        norms_V = np.einsum("vd,vd->v", codebook_VD, codebook_VD)
        errors_BV = norms_V - 2.0 * (residuals_BD @ codebook_VD.T) + np.square(residuals_BD).sum(axis=1)[:, None]
        bounds = []
        for beam, (_, low, high) in enumerate(beams):
            edges_V = low + np.searchsorted(taken_ML[low:high, level], np.arange(len(codebook_VD) + 1))
            held_V = np.diff(edges_V)
            errors_BV[beam, held_V >= below] = np.inf
            if np.count_nonzero(held_V) >= max_branch[level]:
                errors_BV[beam, held_V == 0] = np.inf
            bounds.append(edges_V)
        order = np.argsort(errors_BV, axis=None, kind="stable")[:beam_width]
        order = order[np.isfinite(errors_BV.reshape(-1)[order])]
        if not len(order):
            raise CatalogError(f"no semantic ID is free among {math.prod(max_branch)}: {len(taken_ML)} are taken")
        parents, codes = np.divmod(order, len(codebook_VD))
        residuals_BD = residuals_BD[parents] - codebook_VD[codes]
        beams = [
            ((*beams[parent][0], int(code)), int(bounds[parent][code]), int(bounds[parent][code + 1]))
            for parent, code in zip(parents, codes, strict=True)
        ]
    return np.array(beams[0][0], np.int32)
