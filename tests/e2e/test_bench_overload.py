"""The overload bench in a short form: what it reports, and that the service holds what it promises under it."""

from pathlib import Path

import pytest
from rich.console import Console

from loadtests.bench import overload
from loadtests.bench.overload import GOOD, LESSER, REFUSED, OverloadWorkload, Phase, recovery_s

SHORT = OverloadWorkload(overload_s=4.0, calm_s=3.0, service_time_ms=160.0, deadline_ms=2000.0, num_users=50)


def test_a_short_overload_is_survived(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        result = overload.measure(SHORT, Console(file=log))
    values = {(row.workload, row.system, row.unit): row.value for row in result.rows}
    # What a busy machine cannot take away: most of the capacity is used, and who is accepted is answered in time.
    assert result.ratios["goodput over capacity"] > 0.6
    assert result.ratios["accepted p99 over deadline"] < 1.2
    assert values["overload", f"service, {REFUSED}", "requests/s"] > SHORT.capacity
    assert values["calm before", f"service, {GOOD}", "requests/s"] == pytest.approx(SHORT.capacity / 2, rel=0.3)
    assert values["calm after", "service", "s until all is well"] <= SHORT.calm_s
    assert "Retry-After of the refused: 1 s: " in result.caveat


def test_recovery_ends_with_the_last_answer_that_is_not_good() -> None:
    answers = [(100.0, 0.1, LESSER), (100.3, 0.15, REFUSED), (100.35, 0.01, GOOD), (101.0, 0.01, GOOD)]
    assert recovery_s(Phase(100.0, answers=answers)) == pytest.approx(0.6)
    assert recovery_s(Phase(100.0, answers=answers[2:])) == 0.0


@pytest.mark.parametrize("changes", [{"service_time_ms": 0}, {"factor": -1}, {"max_batch_size": 0}, {"num_users": 0}])
def test_a_workload_that_says_nothing_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        OverloadWorkload(**changes)  # type: ignore[arg-type]
