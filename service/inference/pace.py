"""How long runs take: learnt from those that ended, and asked when a request is admitted or a beam chosen."""

import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from service.bundle.manifest import Purpose
from service.inference.features import bucket

_SMOOTHING: Final = 0.3
"""Weight of the newest run."""
_OUTLIER: Final = 3.0
"""A run that took longer than so many times what was expected counts as that: a pause says little of the next run."""
_FRESH_S: Final = 10.0
"""What was not seen for longer is inferred from what was: a wrong figure would keep away the very runs that mend it."""
_MOST_KNOWN: Final = 64
"""Sizes of a graph's runs that are remembered: requests may name any beam width, and every one asks for all of them."""


class _Known(NamedTuple):
    seconds: float
    learned_s: float


class _Inferred(NamedTuple):
    seconds: float | None
    until_s: float
    """When what it rests upon is not fresh any more, on the clock."""


class Pace:
    """Seconds of a run by graph, padded batch and beam width; runs of other sizes are inferred from the nearest."""

    def __init__(self, max_batch_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_batch_size = max_batch_size
        self._clock = clock
        self._known: dict[Purpose, dict[tuple[int, int], _Known]] = {}
        self._inferred: dict[Purpose, dict[tuple[int, int], _Inferred]] = {}
        """Since the last run of the graph: every request asks for all runs ahead of it."""

    def learn(self, purpose: Purpose, num_requests: int, beam_width: int, seconds: float) -> None:
        """Takes note of a run that ended."""
        known_of_graph = self._known.setdefault(purpose, {})
        key = (self._padded(num_requests), beam_width)
        expected_s = self.seconds(purpose, num_requests, beam_width)
        if expected_s is not None:
            seconds = min(seconds, _OUTLIER * expected_s)
        if (known := known_of_graph.get(key)) is not None:
            seconds = known.seconds + _SMOOTHING * (seconds - known.seconds)
        known_of_graph[key] = _Known(seconds, self._clock())
        self._inferred.pop(purpose, None)
        if len(known_of_graph) > _MOST_KNOWN:
            del known_of_graph[min(known_of_graph, key=lambda size: known_of_graph[size].learned_s)]

    def seconds(self, purpose: Purpose, num_requests: int, beam_width: int) -> float | None:
        """What a run of so many requests will take; None: no run of this graph has ended yet.

        No longer than any run of as many requests and beams or more took. What was not seen lately is inferred from the
        dearest cheaper one (by batch x beams) in proportion, which is too long: every run has a cost that stays.
        """
        key, now_s = (self._padded(num_requests), beam_width), self._clock()
        inferred_of_graph = self._inferred.setdefault(purpose, {})
        inferred = inferred_of_graph.get(key)
        if inferred is None or inferred.until_s < now_s:
            inferred = inferred_of_graph[key] = self._infer(purpose, *key, now_s)
        return inferred.seconds

    def _infer(self, purpose: Purpose, size: int, beam_width: int, now_s: float) -> _Inferred:
        known = self._known.get(purpose, {})
        exact = known.get((size, beam_width))
        if exact is not None and exact.learned_s < now_s - _FRESH_S and len(known) > 1:
            known = {key: value for key, value in known.items() if key != (size, beam_width)}
            exact = None
        at_most = [value.seconds for (n, w), value in known.items() if n >= size and w >= beam_width]
        if exact is not None:
            return _Inferred(min(at_most), exact.learned_s + _FRESH_S)
        cheaper = [(n * w, value.seconds) for (n, w), value in known.items() if n * w <= size * beam_width]
        if cheaper:
            cost, seconds = max(cheaper)
            at_most.append(seconds * size * beam_width / cost)
        elif known:
            at_most.append(min(value.seconds for value in known.values()))
        return _Inferred(min(at_most, default=None), math.inf)

    def _padded(self, num_requests: int) -> int:
        return bucket(min(num_requests, self._max_batch_size), 1, self._max_batch_size)
