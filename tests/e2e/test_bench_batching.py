"""The batching bench in a short form, on a real bundle."""

import os
from io import StringIO

import pytest
from rich.console import Console
from tiny_build import Built

from loadtests.bench.batching import BatchingWorkload, measure


def test_gains_follow_from_the_rates_of_decoder_and_service(built: Built) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    cores = os.sched_getaffinity(0)
    workload = BatchingWorkload(batch_size=4, num_users=10, num_rounds=1, round_s=1.0)
    result = measure(built.bundle, workload, Console(file=StringIO()))
    assert os.sched_getaffinity(0) == cores
    value = {(row.workload, row.system, row.unit): row.value for row in result.rows}
    assert min(value.values()) > 0
    for size in (1, 4):
        label = f"batches of {size}"
        run_ms = value[label, "bare decoder", "ms a run"]
        assert value[label, "bare decoder", "slates/s"] == pytest.approx(size * 1000 / run_ms)
        # Nobody answers faster than the decoder decodes.
        assert value[label, "service, saturated", "slates/s"] < 1.2 * value[label, "bare decoder", "slates/s"]

    def gain(system: str) -> float:
        return value["batches of 4", system, "slates/s"] / value["batches of 1", system, "slates/s"]

    ratios = result.ratios
    assert ratios["bare decoder's gain"] == pytest.approx(gain("bare decoder"))
    assert ratios["service's gain over the bare decoder's"] == pytest.approx(
        gain("service, saturated") / gain("bare decoder")
    )
