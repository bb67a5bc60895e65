"""How long runs take: learnt from those that ended, and asked when a request is admitted or a beam chosen."""

from typing import Final

from service.bundle.manifest import Purpose
from service.inference.features import bucket

_SMOOTHING: Final = 0.3
"""Weight of the newest run."""


class Pace:
    """Seconds of a run by graph, padded batch and beam width; runs of other sizes are inferred from the nearest."""

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._seconds: dict[tuple[Purpose, int, int], float] = {}

    def learn(self, purpose: Purpose, num_requests: int, beam_width: int, seconds: float) -> None:
        """Takes note of a run that ended."""
        key = (purpose, self._padded(num_requests), beam_width)
        known = self._seconds.get(key)
        self._seconds[key] = seconds if known is None else known + _SMOOTHING * (seconds - known)

    def seconds(self, purpose: Purpose, num_requests: int, beam_width: int) -> float | None:
        """What a run of so many requests will take; None: no run of this graph has ended yet.

        What was never seen is inferred from the run nearest in cost (batch x beams): a dearer one in proportion, which
        is too long, because the share that every run costs grows with it; a cheaper one as what is known, which is too
        long as well.
        """
        exact = self._seconds.get((purpose, self._padded(num_requests), beam_width))
        if exact is not None:
            return exact
        cost = self._padded(num_requests) * beam_width
        known = [(size * width, taken_s) for (of, size, width), taken_s in self._seconds.items() if of == purpose]
        if not known:
            return None
        below = [(at, taken_s) for at, taken_s in known if at <= cost]
        if not below:
            return min(known)[1]
        at, taken_s = max(below)
        inferred_s = taken_s * cost / at
        above = [other_s for other, other_s in known if other > cost]
        return min([inferred_s, *above])

    def _padded(self, num_requests: int) -> int:
        return bucket(min(num_requests, self._max_batch_size), 1, self._max_batch_size)
