"""How the decoder bench reads clocks: systems in turn, so that what the machine does besides meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from rich.console import Console

System = Callable[[], object]
"""Does the work once; whatever it returns was computed."""
Readings = dict[str, list[float]]
"""Seconds of one call, by system; one entry a round."""

WINDOW_S = 0.25
"""A fast system runs as often in a round as this takes, so that one reading spans many scheduler ticks."""
SETTLED_S = 1.0
"""A call as long as this may come right after another system's; before a shorter one the system runs once unmeasured,
because threads of the one before go on spinning for a while, on the cores that it needs."""
SGEMM_SIZES = (1024, 2048)
"""Square float32 products; their best rate is what the machine can do."""


def interleaved(
    num_rounds: int, systems: Mapping[str, System], console: Console | None = None, *, window_s: float | None = None
) -> Readings:
    """Each system once unmeasured, then all of them in turn, `num_rounds` times.

    Args:
        num_rounds: Readings of each.
        systems: By name; run in this order, each by itself for a moment (`SETTLED_S`) before it is measured.
        console: Told of every round; None: silent.
        window_s: A reading is the mean over as many calls as fill it; 0: over one; None: `WINDOW_S`.
    """
    readings: Readings = {name: [] for name in systems}
    for system in systems.values():
        system()
    for number in range(num_rounds):
        for name, system in systems.items():
            if not readings[name] or readings[name][-1] < SETTLED_S:
                system()
            readings[name].append(seconds(system, WINDOW_S if window_s is None else window_s))
        if console:
            last = ", ".join(f"{name} {values[-1] * 1000:.1f} ms" for name, values in readings.items())
            console.print(f"  round {number + 1}: {last}", highlight=False)
    return readings


def seconds(call: System, window_s: float) -> float:
    """Mean seconds of a call, over as many calls as fill the window."""
    started_s = time.perf_counter()
    num_calls = 0
    while True:
        call()
        num_calls += 1
        elapsed_s = time.perf_counter() - started_s
        if elapsed_s >= window_s:
            return elapsed_s / num_calls


def medians(readings: Readings) -> dict[str, float]:
    """By system."""
    return {name: statistics.median(values) for name, values in readings.items()}


def sgemm(size: int) -> System:
    """One square float32 product of PyTorch's, on its threads."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    return lambda: left @ right


def sgemm_systems() -> dict[str, System]:
    """A product of each size, by name."""
    return {f"sgemm {size}": sgemm(size) for size in SGEMM_SIZES}


def sgemm_rates(readings: Readings) -> dict[str, list[float]]:
    """FLOP/s of each reading of `sgemm_systems`; other systems are left out."""
    flops = {f"sgemm {size}": 2.0 * size**3 for size in SGEMM_SIZES}
    return {name: [flops[name] / value for value in values] for name, values in readings.items() if name in flops}
