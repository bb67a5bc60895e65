"""Whether the model's slates look as they did at export: counted as they are answered, at microseconds each.

Legend: N slots of the catalog, W beams.
"""

import math
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from service.bundle import Manifest
from service.bundle.manifest import score_keys
from service.catalog import CatalogSnapshot
from service.domain import RankedSlate
from service.inference.runner import Beams
from service.metrics import DIRECTIONS, POPULARITIES, Metrics

_SLICE_S: Final = 300.0
_NUM_SLICES: Final = 12
"""Slices of the window within which an item counts as shown: an hour, of which the last slice has just begun."""
_COLD, _OTHER, _POPULAR = range(len(POPULARITIES))


class SlateHealth:
    """Counts the slates that one model wrote. For one thread."""

    def __init__(
        self,
        manifest: Manifest,
        snapshot: CatalogSnapshot,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Looks at every item of the catalog once.

        Args:
            manifest: Of the model's bundle; one without reference statistics has nothing to be compared with.
            snapshot: Of the model's catalog: what comes into it later has no training events.
            metrics: Where it is counted.
            clock: Seconds.
        """
        events_N = snapshot.popularity_of_slots()
        kind_N = np.where(events_N >= snapshot.popular_from, _POPULAR, _OTHER)
        kind_N[events_N == 0] = _COLD
        self._kinds = kind_N.astype(np.uint8).tobytes()
        self._counters = [metrics.items_shown.labels(name) for name in POPULARITIES]
        self._entropy, self._compared = metrics.beam_entropy, metrics.slates_compared
        self._above, self._below = (metrics.score_shift.labels(name) for name in DIRECTIONS)
        self._references = _score_references(manifest)
        self._lately = ShownLately(clock)

    def observe(self, slate: RankedSlate, beams: Beams, snapshot: CatalogSnapshot, *, is_typical: bool) -> None:
        """One slate that is answered.

        Args:
            slate: What is shown.
            beams: It was chosen from.
            snapshot: It was decoded against.
            is_typical: Whether it was made as the references at export were: by a search of the model's own width,
                for a user with a history, with nothing but seen items left out.
        """
        if not slate.items:
            return
        kinds, num_known = self._kinds, len(self._kinds)
        slots = snapshot.slots_of([item.item_id for item in slate.items])
        found = [kinds[slot] if slot < num_known else _COLD for slot in slots]
        for kind, counter in enumerate(self._counters):
            if count := found.count(kind):
                counter.inc(count)
        self._lately.add(slots)
        if not is_typical:
            return
        self._entropy.observe(beam_entropy_nats(beams.scores_W))
        if (reference := self._references.get(len(slate.items))) is not None:
            mean, deviation = reference
            shift = (slate.score / len(slate.items) - mean) / deviation
            self._compared.inc()
            (self._above if shift > 0 else self._below).inc(abs(shift))

    @property
    def num_shown_lately(self) -> int:
        """Distinct items of the last hour's slates."""
        return self._lately.count()


class ShownLately:
    """How many distinct items were shown within the last hour; a byte an item."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self._time = int(clock() // _SLICE_S)
        self._mark = 1
        """Of what is shown now; marks of earlier slices are those before it, in a ring."""
        self._marks = bytearray()
        """By slot: of the slice in which the item was last shown; 0: of none."""
        self._counts = [0] * (_NUM_SLICES + 1)
        """By mark."""

    def add(self, slots: list[int]) -> None:
        """These are shown now."""
        self._go_on()
        marks, counts, mark = self._marks, self._counts, self._mark
        if (last := max(slots, default=0)) >= len(marks):
            marks.extend(bytes(2 * last + 64 - len(marks)))
        for slot in slots:
            before = marks[slot]
            if before != mark:
                counts[before] -= 1
                counts[mark] += 1
                marks[slot] = mark

    def count(self) -> int:
        """Of distinct items."""
        self._go_on()
        return sum(self._counts[1:])

    def _go_on(self) -> None:
        """Forgets the slices that are too old by now, and begins the present one."""
        now = int(self._clock() // _SLICE_S)
        if now == self._time:
            return
        for _ in range(min(now - self._time, _NUM_SLICES)):
            self._mark = self._mark % _NUM_SLICES + 1
            if self._counts[self._mark]:
                self._marks = self._marks.replace(bytes([self._mark]), b"\0")
                self._counts[self._mark] = 0
        self._time = now


def beam_entropy_nats(scores_W: npt.NDArray[np.float32]) -> float:
    """How undecided the search was between the whole slates that it kept: entropy of their probabilities, which are
    made to sum to one over the kept. In [0, log W]; of all the slates that there might be it says nothing.

    `scores_W`: descending, as beams have them.
    """
    gap_W = scores_W - scores_W[0]
    weight_W = np.exp(gap_W)  # 0 of a beam that does not exist
    total = float(np.add.reduce(weight_W))
    # Never below 0 by rounding: the sum of what is observed must not fall.
    return max(0.0, math.log(total) - float(weight_W.dot(gap_W)) / total)


def _score_references(manifest: Manifest) -> dict[int, tuple[float, float]]:
    """Mean and deviation of the score per item, by number of items."""
    statistics, found = manifest.slate_statistics, {}
    for num_items in range(1, manifest.slate_size + 1):
        mean, deviation = (statistics.get(key) for key in score_keys(num_items))
        if mean is not None and deviation:
            found[num_items] = (mean, deviation)
    return found
