"""A model that is warmed up beside one that serves leaves it the cores for half of the time."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from service import opening
from service.inference.fake_runner import FakeRunner, fake_catalog, fake_manifest
from service.settings import Settings


@pytest.mark.parametrize("beside_another", [False, True])
def test_after_each_run_it_rests_for_as_long(beside_another: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    course: list[tuple[str, float]] = []
    resting = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: course.append(("rest", seconds)))
    monkeypatch.setattr(opening, "time", resting)

    class Timed(FakeRunner):
        def run(self, *arguments: Any) -> Any:
            started_s = time.perf_counter()
            decoded = super().run(*arguments)
            while time.perf_counter() < started_s + 0.002:
                pass
            course.append(("run", time.perf_counter() - started_s))
            return decoded

    runner = Timed(fake_manifest())
    opening.warm_up(Settings(runner="fake"), runner, fake_catalog(100), beside_another=beside_another)
    runs = [seconds for what, seconds in course if what == "run"]
    assert len(runs) > 10
    if beside_another:
        assert [what for what, _ in course] == ["run", "rest"] * len(runs)
        assert sum(seconds for what, seconds in course if what == "rest") == pytest.approx(sum(runs), rel=0.3)
    else:
        assert len(runs) == len(course)
