"""From what the graph `explain` decoded to an explanation in items' ids.

Legend: N items, K slate size, L levels, R runner-ups, X excluded rows.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt

from service.catalog import CatalogSnapshot
from service.domain.explanation import ExplainedCode, ExplainedItem, RunnerUp
from service.inference.features import RequestInputs
from service.inference.runner import DEAD_SCORE, Beams


def explanation_of(beams: Beams, snapshot: CatalogSnapshot, request: RequestInputs) -> tuple[ExplainedItem, ...] | None:
    """The slate that the request asked to explain, item by item; None where the catalog has changed too much
    since: an item of it is gone, or nothing could be chosen there any more.

    `snapshot`: that the explanation was decoded against.
    """
    num_items = len(request.forced_keys_K)
    codes_KLR, logprobs_KLR = beams.runner_up_codes_KLR, beams.runner_up_logprobs_KLR
    assert codes_KLR is not None
    assert logprobs_KLR is not None
    is_there = beams.item_valid_WK[0, :num_items].all() and beams.level_logprobs_WKL.min(initial=0) > DEAD_SCORE / 2
    if not is_there:
        return None
    shown_N = np.diff(snapshot.allowed_cumsum(request.tag_filter)) > 0
    excluded_X = snapshot.rows_of_keys(request.excluded_keys_S)
    shown_N[excluded_X[excluded_X >= 0]] = False
    group_N, counts = snapshot.child_groups[-1], Counter[int]()
    items = []
    for place, row in enumerate(beams.item_rows_WK[0, :num_items].tolist()):
        sid = tuple(snapshot.sids_NL[row].tolist())
        levels = []
        for level, code in enumerate(sid):
            pairs = zip(codes_KLR[place, level].tolist(), logprobs_KLR[place, level].tolist(), strict=True)
            runner_ups = tuple(
                RunnerUp(code=other, logprob=logprob, item_id=_example(snapshot, (*sid[:level], other), shown_N))
                for other, logprob in pairs
                if other >= 0
            )
            logprob = float(beams.level_logprobs_WKL[0, place, level])
            levels.append(ExplainedCode(code=code, logprob=logprob, runner_ups=runner_ups))
        items.append(ExplainedItem(item_id=snapshot.items[row].item_id, levels=tuple(levels)))
        # What has its place is no choice for later ones, and neither is a group that is full.
        shown_N[row] = False
        group = int(group_N[row])
        counts[group] += 1
        if group >= 0 and counts[group] == request.max_per_group:
            shown_N[group_N == group] = False
    return tuple(items)


def _example(snapshot: CatalogSnapshot, prefix: tuple[int, ...], shown_N: npt.NDArray[np.bool_]) -> str | None:
    low, high = rows_below(snapshot, prefix)
    rows = low + np.flatnonzero(shown_N[low:high])
    if not len(rows):
        return None
    return snapshot.items[int(rows[np.argmax(snapshot.popularity_N[rows])])].item_id


def rows_below(snapshot: CatalogSnapshot, prefix: tuple[int, ...]) -> tuple[int, int]:
    """The range of rows whose sids begin with the prefix; empty where there are none."""
    low, high = 0, snapshot.num_items
    for level, code in enumerate(prefix):
        codes = snapshot.sids_NL[low:high, level]
        low, high = low + int(np.searchsorted(codes, code)), low + int(np.searchsorted(codes, code, side="right"))
    return low, high
