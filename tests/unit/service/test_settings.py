"""Settings from the environment: what is read, and one clear line for what is not."""

from pathlib import Path

import pytest

from service.catalog import TagFilter
from service.settings import Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("ONESLATE_"):
            monkeypatch.delenv(name)


def _set(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_nested_values_and_named_filters_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(
        monkeypatch,
        ONESLATE_BUNDLE="/somewhere",
        ONESLATE_HISTORY__URL="redis://:secret@host:6379/0",
        ONESLATE_HISTORY__NUM_ENTRIES="17",
        ONESLATE_BATCH__MAX_SIZE="4",
        ONESLATE_FILTERS='{"kids": {"any_of": ["Children"], "none_of": ["Horror"]}}',
    )
    settings = Settings.load(port=9000)
    assert settings.bundle == Path("/somewhere")
    assert (settings.port, settings.batch.max_size, settings.history.num_entries) == (9000, 4, 17)
    assert settings.batch.queue_limit == 256
    assert settings.history.url is not None
    assert "secret" in settings.history.url.get_secret_value()
    assert settings.filters["kids"].tag_filter() == TagFilter(
        any_of=frozenset({"Children"}), none_of=frozenset({"Horror"})
    )
    assert "secret" not in repr(settings)


def test_settings_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load(runner="fake")
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ONESLATE_PROT": "1"}, "unknown setting ONESLATE_PROT; did you mean ONESLATE_PORT?"),
        ({"ONESLATE_BATCH__MAX_SISE": "1"}, "ONESLATE_BATCH__MAX_SISE; did you mean ONESLATE_BATCH__MAX_SIZE?"),
        ({"ONESLATE_PORT": "many"}, "ONESLATE_PORT: Input should be a valid integer"),
        ({"ONESLATE_PORT": "70000"}, "ONESLATE_PORT: Input should be less than or equal to 65535"),
        ({"ONESLATE_BATCH__MAX_SIZE": "0"}, "ONESLATE_BATCH__MAX_SIZE: Input should be greater than or equal to 1"),
        ({"ONESLATE_BATCH": '{"size": 1}'}, "ONESLATE_BATCH__SIZE: Extra inputs are not permitted"),
        ({"ONESLATE_FILTERS": "kids"}, "filters"),
        ({"ONESLATE_FILTERS": '{"kids": {}}'}, "ONESLATE_FILTERS__KIDS: a filter needs at least one tag"),
        ({"ONESLATE_HISTORY__URL": "redis://x", "ONESLATE_HISTORY__DATA_DIR": "y"}, "give url or data_dir, not both"),
        ({"ONESLATE_RUNNER": "onnx"}, "ONESLATE_BUNDLE must name the directory of a bundle"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    _set(monkeypatch, **({"ONESLATE_RUNNER": "fake"} | environment))
    with pytest.raises(ValueError, match=r"ONESLATE|filters|give") as raised:
        Settings.load()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_names_of_the_test_suite_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, ONESLATE_REQUIRE_DATA="1")
    assert Settings.load(runner="fake").runner == "fake"
