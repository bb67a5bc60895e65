"""When a call is sent again: never past its deadline, never before it may be, never twice where that could do harm."""

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneslate_client import ApiError, OneSlateError, RetryPolicy, TryLater, Unreachable
from oneslate_client.policy import Course


@given(
    max_tries=st.one_of(st.none(), st.integers(1, 8)),
    first_pause_s=st.floats(0.001, 1),
    took_s=st.lists(st.floats(0.3, 3), min_size=70, max_size=70),
    retry_after=st.lists(st.one_of(st.none(), st.integers(0, 6)), min_size=70, max_size=70),
    deadline_s=st.floats(0.1, 20),
    seed=st.integers(0, 1000),
)
def test_no_pause_ends_after_the_deadline_or_before_it_may(
    max_tries: int | None,
    first_pause_s: float,
    took_s: list[float],
    retry_after: list[int | None],
    deadline_s: float,
    seed: int,
) -> None:
    policy = RetryPolicy(max_tries=max_tries, first_pause_s=first_pause_s)
    course = Course(policy, may_repeat=True, deadline_s=deadline_s, rng=random.Random(seed))
    now_s = 0.0
    for number, (took, after) in enumerate(zip(took_s, retry_after, strict=True), start=1):
        now_s += took
        headers = {} if after is None else {"retry-after": str(after)}
        try:
            pause_s = course.problem(429, headers, {"title": "full"}, now_s)
        except TryLater as error:
            ending = error
            break
        assert max_tries is None or number < max_tries
        assert (after or 0) <= pause_s <= (after or 0) + min(policy.max_pause_s, first_pause_s * 2 ** (number - 1))
        now_s += pause_s
        assert now_s < deadline_s
    assert ending.retry_after_s == after
    assert number == max_tries or now_s + (after or 0) + first_pause_s * 2 ** (number - 1) >= deadline_s


@pytest.mark.parametrize("may_repeat", [True, False])
@pytest.mark.parametrize("status", [400, 401, 404, 408, 409, 422, 429, 500, 502, 503, 504])
def test_only_what_may_be_sent_twice_is(status: int, may_repeat: bool) -> None:
    course = Course(RetryPolicy(), may_repeat=may_repeat, deadline_s=100.0)
    again = status == 429 or (may_repeat and status in {408, 502, 503, 504})
    if again:
        assert course.problem(status, {}, {}, 0.0) <= 0.1
        return
    with pytest.raises(ApiError) as caught:
        course.problem(status, {"Retry-After": "3"}, {"title": "no", "detail": "because"}, 0.0)
    assert isinstance(caught.value, TryLater) == (status == 503)
    assert str(caught.value) == "no: because"


def test_a_connection_that_was_never_made_may_be_tried_again_whatever_was_asked() -> None:
    course = Course(RetryPolicy(), may_repeat=False, deadline_s=100.0)
    assert course.no_answer(OSError("refused"), 0.0, was_sent=False) >= 0
    with pytest.raises(Unreachable, match="reset") as caught:
        course.no_answer(OSError("reset"), 0.0, was_sent=True)
    assert isinstance(caught.value.__cause__, OSError)


def test_retry_after_may_be_a_date_and_may_be_nonsense() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    course = Course(RetryPolicy(), may_repeat=True, deadline_s=100.0)
    assert 28 < course.problem(503, {"Retry-After": later}, {}, 0.0) <= 30.2
    assert course.problem(503, {"Retry-After": "soon"}, {}, 0.0) <= 0.2
    assert course.problem(503, {"Retry-After": "-5"}, {}, 0.0) <= 0.4


def test_pauses_differ_between_clients() -> None:
    pauses = {
        Course(RetryPolicy(), may_repeat=True, deadline_s=9.0).no_answer(OSError(), 0.0, was_sent=True)
        for _ in range(20)
    }
    assert len(pauses) == 20


def test_a_problem_is_told_with_its_places() -> None:
    members = {
        "type": "urn:oneslate:problem:invalid-request", "title": "Invalid request", "detail": "2 mistakes",
        "errors": [{"pointer": "/slate_size", "detail": "at most 10"}], "request_id": "r1",
    }  # fmt: skip
    error = ApiError(422, members)
    assert (error.code, error.errors[0].pointer) == ("invalid-request", "/slate_size")
    assert str(error) == "Invalid request: /slate_size: at most 10 (request r1)"
    assert isinstance(error, OneSlateError)


@pytest.mark.parametrize("errors", ["boom", ["boom"], {"boom": 1}, [None], 3])
def test_what_a_gateway_calls_errors_is_no_mistake_of_ours(errors: object) -> None:
    assert str(ApiError(502, {"title": "Bad gateway", "errors": errors})) == "Bad gateway"


def test_as_long_as_the_deadline_allows_it_is_tried_again() -> None:
    course, now_s, num_tries = Course(RetryPolicy(), may_repeat=True, deadline_s=3600.0), 0.0, 1
    while (left_s := 3600.0 - now_s) > 5.0:
        now_s += course.problem(503, {}, {}, now_s)
        num_tries += 1
    with pytest.raises(TryLater):
        course.problem(503, {}, {}, now_s + left_s)
    assert num_tries > 3600 / 5


@pytest.mark.parametrize("wrong", [{"max_tries": 0}, {"first_pause_s": 0}, {"first_pause_s": 9.0}])
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="max_tries"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]
