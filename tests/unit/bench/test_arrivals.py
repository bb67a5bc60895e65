"""Schedules of open-loop load: how many requests come, and when."""

import random

import numpy as np
import pytest

from loadtests.arrivals import BURST_FACTOR, BURST_PERIOD_S, BURST_SHARE, Shape, arrivals, rate_at


@pytest.mark.parametrize("shape", ["poisson", "bursts"])
def test_requests_come_at_the_rate_and_in_order(shape: Shape) -> None:
    times = list(arrivals(shape, 200.0, 500.0, random.Random(0)))
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 500
    # 100,000 +- 5 standard deviations.
    assert abs(len(times) - 100_000) < 5 * 100_000**0.5


def test_gaps_of_poisson_arrivals_are_exponential() -> None:
    gaps = np.diff(list(arrivals("poisson", 50.0, 2000.0, random.Random(1))))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)
    assert (gaps > 3 / 50).mean() == pytest.approx(np.exp(-3), rel=0.1)


def test_bursts_are_as_much_faster_as_the_rest_is_slower() -> None:
    times = np.array(list(arrivals("bursts", 100.0, 1000.0, random.Random(2))))
    in_burst = times % BURST_PERIOD_S < BURST_SHARE * BURST_PERIOD_S
    assert in_burst.mean() == pytest.approx(BURST_SHARE * BURST_FACTOR, rel=0.03)
    mean = BURST_SHARE * rate_at(0.0, 100.0) + (1 - BURST_SHARE) * rate_at(4.9, 100.0)
    assert mean == pytest.approx(100.0)


def test_one_seed_is_one_schedule() -> None:
    def schedule(seed: int) -> list[float]:
        return list(arrivals("bursts", 10.0, 60.0, random.Random(seed)))

    assert schedule(3) == schedule(3) != schedule(4)


@pytest.mark.parametrize(("rate", "seconds"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 5.0)])
def test_a_schedule_of_nothing_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        next(arrivals("poisson", rate, seconds, random.Random(0)))
