"""When requests come, whatever becomes of those before them: the schedules of open-loop load."""

import random
from collections.abc import Iterator
from typing import Final, Literal

Shape = Literal["poisson", "bursts"]
BURST_PERIOD_S: Final = 5.0
BURST_SHARE: Final = 0.2
"""Of the period ..."""
BURST_FACTOR: Final = 3.0
"""... in which requests come so many times as fast as on average; in the rest of it slower, so that the mean stays."""


def arrivals(shape: Shape, rate: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Seconds from the start at which requests come, ascending: at random, `rate` a second on average.

    `poisson`: at one rate. `bursts`: at three times that rate in a fifth of every five seconds.

    Raises:
        ValueError: a rate or a time that is not positive.
    """
    if rate <= 0 or seconds <= 0:
        raise ValueError(f"rate and seconds must be positive, not {rate:g} and {seconds:g}")
    # Bursts by thinning (Lewis and Shedler 1979): draw at the highest rate, keep as many as the rate of the moment.
    most = rate if shape == "poisson" else rate * BURST_FACTOR
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(most)) < seconds:
        if shape == "poisson" or rng.random() < rate_at(at_s, rate) / most:
            yield at_s


def rate_at(at_s: float, rate: float) -> float:
    """Of `bursts`, at a moment."""
    if at_s % BURST_PERIOD_S < BURST_SHARE * BURST_PERIOD_S:
        return rate * BURST_FACTOR
    return rate * (1 - BURST_SHARE * BURST_FACTOR) / (1 - BURST_SHARE)
