"""A free place in the catalog for new items: the nearest sid that no item has and whose nodes have room.

Legend: N items (rows), A new items, B beams of one item, L levels, V codes of a level, D embedding width.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from service.bundle.item_encoder import assign_new
from service.catalog.change import Sid
from service.catalog.snapshot import CatalogSnapshot, sortable
from service.errors import CatalogError

FloatArray = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]

_NUM_CANDIDATES = 4
_CHUNK = 256


class FreeSids:
    """Gives places away, each once until it begins anew."""

    def __init__(self, codebooks: Sequence[FloatArray], max_branch: Sequence[int]) -> None:
        self._codebooks = codebooks
        self._max_branch = tuple(max_branch)
        self._taken: dict[Sid, None] = {}
        """Beside the snapshot's own."""
        self._sorted: tuple[CatalogSnapshot, int, Int32Array] | None = None
        """A snapshot's sids with the first so many of `_taken`, row by row in order: made when first needed."""
        self._new_codes: dict[Sid, set[int]] = {}
        """Codes below each prefix that only `_taken` needs, or that the snapshot knows by now."""

    def begin(self, snapshot: CatalogSnapshot, taken: Iterable[Sid]) -> None:
        """From here on these places are taken, and those of the snapshot; no others."""
        self._taken, self._new_codes, self._sorted = {}, {}, None
        for sid in taken:
            if _row_of_sid(snapshot, sid) is None:
                self._take(sid)

    def _take(self, sid: Sid) -> None:
        self._taken[sid] = None
        for level, code in enumerate(sid):
            self._new_codes.setdefault(sid[:level], set()).add(code)

    def find(self, snapshot: CatalogSnapshot, embeddings_AD: FloatArray) -> list[Sid | None]:
        """A sid for each embedding, in order; None where no place is left.

        A beam over the residuals of all items at once gives each its nearest few sids, whether they are free or not.
        Only an item that finds none of them free is looked at by itself, with a beam that follows free prefixes alone.
        """
        found: list[Sid | None] = []
        for start in range(0, len(embeddings_AD), _CHUNK):
            chunk_AD = embeddings_AD[start : start + _CHUNK]
            for embedding_D, candidates in zip(chunk_AD, self._nearest(chunk_AD), strict=True):
                sid = next((one for one in map(tuple, candidates) if self._is_free(snapshot, one)), None)
                if sid is None:
                    sid = self._searched(snapshot, embedding_D)
                if sid is not None:
                    self._take(sid)
                found.append(sid)
        return found

    def _nearest(self, embeddings_AD: FloatArray) -> list[list[list[int]]]:
        """The nearest few sids of each embedding, nearest first, free or not: [A, B, L]."""
        num_items = len(embeddings_AD)
        residuals_ABD = embeddings_AD[:, None]
        codes_ABL = np.zeros((num_items, 1, 0), dtype=np.int32)
        items_A1 = np.arange(num_items)[:, None]
        for codebook_VD in self._codebooks:
            # |r - c|^2 = |r|^2 - 2 r c + |c|^2
            errors_ABV = np.einsum("vd,vd->v", codebook_VD, codebook_VD) - 2.0 * (residuals_ABD @ codebook_VD.T)
            errors_ABV += np.square(residuals_ABD).sum(axis=2, keepdims=True)
            flat_AC = errors_ABV.reshape(num_items, -1)
            num_kept = min(_NUM_CANDIDATES, flat_AC.shape[1])
            best_AB = np.argpartition(flat_AC, num_kept - 1, axis=1)[:, :num_kept]
            best_AB = best_AB[items_A1, np.argsort(flat_AC[items_A1, best_AB], axis=1, kind="stable")]
            parents_AB, new_AB = np.divmod(best_AB, len(codebook_VD))
            residuals_ABD = residuals_ABD[items_A1, parents_AB] - codebook_VD[new_AB]
            codes_ABL = np.concatenate([codes_ABL[items_A1, parents_AB], new_AB[:, :, None].astype(np.int32)], axis=2)
        nearest: list[list[list[int]]] = codes_ABL.tolist()
        return nearest

    def _is_free(self, snapshot: CatalogSnapshot, sid: Sid) -> bool:
        """Nobody has it, and every node on its way that would get a new child has room."""
        if sid in self._taken:
            return False
        trie, node = snapshot.trie, 0
        exists = True
        for level, code in enumerate(sid):
            if exists:
                begin, end = trie.child_begin[level][node : node + 2].tolist()
                codes = trie.child_code[level][begin:end]
                place = int(np.searchsorted(codes, code))
                exists, num_children = place < len(codes) and int(codes[place]) == code, end - begin
                node = begin + place
            else:
                num_children, codes = 0, trie.child_code[level][:0]
            new = self._new_codes.get(sid[:level], ())
            if not exists and code not in new:
                num_new = sum(not _holds(codes, other) for other in new)
                if num_children + num_new >= self._max_branch[level]:
                    return False
        return not exists

    def _searched(self, snapshot: CatalogSnapshot, embedding_D: FloatArray) -> Sid | None:
        try:
            taken_ML = self._all_taken(snapshot)
            codes: list[int] = assign_new(embedding_D, self._codebooks, taken_ML, self._max_branch).tolist()
        except CatalogError:
            return None
        return tuple(codes)

    def _all_taken(self, snapshot: CatalogSnapshot) -> Int32Array:
        """The sids of the snapshot and `_taken`, sorted [M, L]; what came since the last time is inserted."""
        if self._sorted is None or self._sorted[0] is not snapshot:
            self._sorted = (snapshot, 0, snapshot.sids_NL)
        _, num_known, sids_ML = self._sorted
        new = [sid for sid in islice(self._taken, num_known, None) if _row_of_sid(snapshot, sid) is None]
        if new:
            new_AL = np.array(sorted(new), dtype=np.int32)
            sids_ML = np.insert(sids_ML, np.searchsorted(sortable(sids_ML), sortable(new_AL)), new_AL, axis=0)
        self._sorted = (snapshot, len(self._taken), sids_ML)
        return sids_ML


def _row_of_sid(snapshot: CatalogSnapshot, sid: Sid) -> int | None:
    node = 0
    for level, code in enumerate(sid):
        begin, end = snapshot.trie.child_begin[level][node : node + 2].tolist()
        node = begin + bisect_left(snapshot.trie.child_code[level][begin:end], code)
        if node == end or int(snapshot.trie.child_code[level][node]) != code:
            return None
    return node


def _holds(codes: Int32Array, code: int) -> bool:
    place = int(np.searchsorted(codes, code))
    return place < len(codes) and int(codes[place]) == code
