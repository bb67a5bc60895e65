"""What is expected of runs, from those that were seen."""

import pytest

from service.inference.pace import Pace


def test_nothing_is_known_before_the_first_run_of_a_graph() -> None:
    pace = Pace(8)
    pace.learn("explain", 1, 1, 0.5)
    assert pace.seconds("generator", 1, 4) is None
    assert pace.seconds("explain", 1, 1) == 0.5


def test_runs_of_one_padded_size_are_one() -> None:
    pace = Pace(6)
    pace.learn("generator", 3, 4, 0.1)
    assert pace.seconds("generator", 4, 4) == 0.1
    pace.learn("generator", 5, 4, 0.3)
    assert pace.seconds("generator", 6, 4) == pace.seconds("generator", 60, 4) == 0.3


def test_the_newest_runs_weigh_most() -> None:
    pace = Pace(1)
    pace.learn("generator", 1, 4, 1.0)
    for _ in range(30):
        pace.learn("generator", 1, 4, 0.1)
    assert pace.seconds("generator", 1, 4) == pytest.approx(0.1, rel=0.01)


def test_what_was_not_seen_is_inferred_from_the_nearest() -> None:
    pace = Pace(32)
    pace.learn("generator", 2, 8, 0.1)
    assert pace.seconds("generator", 1, 8) == 0.1  # every run costs something
    assert pace.seconds("generator", 4, 8) == pytest.approx(0.2)
    assert pace.seconds("generator", 4, 4) == pytest.approx(0.1)
    pace.learn("generator", 8, 8, 0.15)
    assert pace.seconds("generator", 4, 8) == 0.15  # not more than a dearer run took
    assert pace.seconds("generator", 16, 8) == pytest.approx(0.3)


def test_a_run_that_was_slow_once_says_little() -> None:
    pace = Pace(32)
    for size in (1, 32):
        pace.learn("generator", size, 8, 0.02)
    pace.learn("generator", 2, 8, 2.0)  # the process was paused
    assert pace.seconds("generator", 2, 8) == 0.02  # no more than 32 of them took
    pace.learn("generator", 32, 8, 2.0)
    slow_s = pace.seconds("generator", 32, 8)
    assert slow_s is not None
    assert slow_s < 0.04


def test_what_was_not_seen_lately_is_inferred_again() -> None:
    now_s = 0.0
    pace = Pace(8, clock=lambda: now_s)
    pace.learn("generator", 1, 8, 0.02)
    for _ in range(20):
        pace.learn("generator", 8, 8, 9.0)
    assert pace.seconds("generator", 8, 8) == pytest.approx(9.0, rel=0.1)
    now_s = 9.0
    pace.learn("generator", 1, 8, 0.02)
    assert pace.seconds("generator", 8, 8) == pytest.approx(9.0, rel=0.1)
    now_s = 11.0
    assert pace.seconds("generator", 8, 8) == pytest.approx(0.16)
    assert pace.seconds("generator", 1, 8) == 0.02


def test_a_machine_that_became_slower_is_believed_after_some_runs() -> None:
    pace = Pace(1)
    pace.learn("generator", 1, 4, 0.01)
    for _ in range(12):
        pace.learn("generator", 1, 4, 1.0)
    assert pace.seconds("generator", 1, 4) == pytest.approx(1.0, rel=0.2)


def test_it_remembers_so_many_sizes_and_the_newest() -> None:
    now_s = [0.0]
    pace = Pace(1, clock=lambda: now_s[0])
    for beam_width in range(1, 1001):
        now_s[0] += 0.001
        pace.learn("generator", 1, beam_width, beam_width / 1000)
    assert len(pace._known["generator"]) == 64
    assert pace.seconds("generator", 1, 1000) == 1.0
