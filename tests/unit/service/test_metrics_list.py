"""Counters of trouble are there before the trouble: a counter that begins at 1 has no rate."""

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from service import metrics
from service.app import create_app
from service.history.store import EventOutcome
from service.items.writer import Status
from service.problems import PROBLEM_TYPES
from service.recommend import REASONS
from service.settings import EventLogSettings, Settings

SERVICE = Path(metrics.__file__).parent


@pytest.fixture(scope="module")
def first_scrape() -> str:
    text: bytes = create_app(Settings(runner="fake", deadline_ms=250)).state.metrics.render()
    return text.decode()


def shown(text: str, name: str, label: str) -> set[str]:
    return set(re.findall(rf'^{name}{{(?:.*,)?{label}="([^"]*)".*}} 0\.0$', text, re.MULTILINE))


@pytest.mark.parametrize(
    ("counter", "values"),
    [("history_errors", metrics.HISTORY_OPERATIONS), ("catalog_errors", metrics.CATALOG_OPERATIONS)],
)
def test_operations_are_those_that_the_code_counts(counter: str, values: tuple[str, ...]) -> None:
    code = "\n".join(file.read_text() for file in SERVICE.rglob("*.py"))
    assert set(re.findall(rf'{counter}\.labels\("(\w+)"\)', code)) == set(values)


def test_outcomes_are_those_of_events_and_items() -> None:
    assert set(metrics.EVENT_OUTCOMES) == set(get_args(get_type_hints(EventOutcome)["status"]))
    assert set(metrics.ITEM_OUTCOMES) == {*get_args(Status), "rolled_back"}


def test_a_first_scrape_shows_every_trouble_at_zero(first_scrape: str) -> None:
    assert shown(first_scrape, "oneslate_errors_total", "type") == {problem.code for problem in PROBLEM_TYPES}
    assert shown(first_scrape, "oneslate_slates_total", "reason") == {"none", *REASONS}
    assert shown(first_scrape, "oneslate_history_errors_total", "operation") == set(metrics.HISTORY_OPERATIONS)
    assert shown(first_scrape, "oneslate_catalog_log_errors_total", "operation") == set(metrics.CATALOG_OPERATIONS)
    assert shown(first_scrape, "oneslate_events_total", "outcome") == set(metrics.EVENT_OUTCOMES)
    assert shown(first_scrape, "oneslate_item_changes_total", "outcome") == set(metrics.ITEM_OUTCOMES)


def test_a_popular_slate_has_a_reason_and_only_the_severest(first_scrape: str) -> None:
    found = re.findall(r'^oneslate_slates_total{reason="(\w+)",source="popular"}', first_scrape, re.MULTILINE)
    assert set(found) == {"model_unavailable", "deadline"}


def test_the_deadline_is_the_one_of_the_settings(first_scrape: str) -> None:
    assert "\noneslate_default_deadline_seconds 0.25\n" in first_scrape


@pytest.mark.parametrize("histogram", ["request_seconds", "stage_seconds"])
def test_a_slate_that_takes_as_long_as_any_deadline_falls_into_a_bucket(histogram: str) -> None:
    (longest_ms,) = (one.le for one in Settings.model_fields["deadline_ms"].metadata if hasattr(one, "le"))
    made = metrics.Metrics()
    getattr(made, histogram).labels("total").observe(longest_ms / 1000)
    below = re.findall(r'_bucket{le="([\d.]+)",\w+="total"} 1.0', made.render().decode())
    assert below == [str(longest_ms / 1000)]


def test_the_limit_of_the_event_log_is_the_one_of_the_settings(first_scrape: str) -> None:
    assert "\noneslate_event_log_limit_rows 0.0\n" in first_scrape
    kept = create_app(Settings(runner="fake", event_log=EventLogSettings(max_rows=5000))).state.metrics.render()
    assert b"\noneslate_event_log_limit_rows 5000.0\n" in kept


def test_without_a_file_of_keys_none_is_out_of_order(first_scrape: str) -> None:
    assert "\noneslate_key_file_current 1.0\n" in first_scrape
