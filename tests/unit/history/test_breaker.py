"""The circuit breaker, against its rules spelled out."""

from hypothesis import given
from hypothesis import strategies as st

from service.history.breaker import NUM_FAILURES, OPEN_S, SILENCE_S, CircuitBreaker, State


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_it_opens_after_failures_in_a_row_and_one_probe_closes_it() -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock=clock)
    for _ in range(NUM_FAILURES - 1):
        assert breaker.may_ask()
        breaker.failed()
    assert breaker.state is State.CLOSED
    breaker.failed()
    assert breaker.state is State.OPEN
    assert not breaker.may_ask()
    clock.now_s += OPEN_S
    assert breaker.state is State.HALF_OPEN
    assert breaker.may_ask()
    assert not breaker.may_ask(), "one probe at a time"
    breaker.succeeded()
    assert breaker.state is State.CLOSED
    assert all(breaker.may_ask() for _ in range(10))


def test_a_failed_probe_opens_it_again() -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock=clock)
    for _ in range(NUM_FAILURES):
        breaker.failed()
    clock.now_s += OPEN_S
    assert breaker.may_ask()
    breaker.failed()
    assert breaker.state is State.OPEN
    assert not breaker.may_ask()
    clock.now_s += OPEN_S
    assert breaker.may_ask()


def test_a_probe_that_tells_nothing_holds_nobody_up_for_long() -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock=clock)
    for _ in range(NUM_FAILURES):
        breaker.failed()
    clock.now_s += OPEN_S
    assert breaker.may_ask()
    assert not breaker.may_ask()
    clock.now_s += OPEN_S
    assert breaker.may_ask()


@given(st.lists(st.sampled_from(["ask and it answers", "ask and it fails", "wait"]), max_size=60))
def test_a_store_that_fails_is_asked_once_in_a_while_and_one_that_answers_always(course: list[str]) -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock=clock)
    failures, last_asked_s = 0, clock.now_s
    for step in course:
        clock.now_s += SILENCE_S  # calls take a while
        if step == "wait":
            clock.now_s += OPEN_S / 2
            continue
        expected = failures < NUM_FAILURES or clock.now_s >= last_asked_s + OPEN_S
        assert breaker.may_ask() == expected
        if expected:
            last_asked_s = clock.now_s
            if step == "ask and it fails":
                failures += 1
                breaker.failed()
            else:
                failures = 0
                breaker.succeeded()


def test_failures_between_successes_open_nothing_however_many_in_a_row() -> None:
    """As of a cluster with one node down: the others answer all the time."""
    clock = Clock()
    breaker = CircuitBreaker(clock=clock)
    for _ in range(50):
        breaker.succeeded()
        for _ in range(2 * NUM_FAILURES):
            clock.now_s += SILENCE_S / 20
            assert breaker.may_ask()
            breaker.failed()
