"""The live service against its own description: no 5xx, no answer that is not declared, no invalid request accepted."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from measured import Figures
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import ScenarioRecorder

from service.history.embedded import EmbeddedRedis

FILTERS = '{"even": {"any_of": ["even"]}, "nothing": {"all_of": ["odd", "even"]}}'
REFUSALS = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx"]
"""Schemathesis' own, and 413: what breaks the schema may be too large, too."""
SERVE = "from service.app import serve; from service.settings import Settings; serve(Settings.load(), on_ready=print)"


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as redis_url:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ONESLATE_")}
        environment |= {
            "ONESLATE_RUNNER": "fake",
            "ONESLATE_PORT": "0",
            "ONESLATE_HISTORY__URL": redis_url,
            # A busy machine must not make Redis look dead: this test is about contracts, not about time.
            "ONESLATE_HISTORY__READ_TIMEOUT_MS": "5000",
            "ONESLATE_HISTORY__CONNECT_TIMEOUT_MS": "5000",
            "ONESLATE_FILTERS": FILTERS,
            # So many that one more still fits into the largest body.
            "ONESLATE_LIMITS__ITEMS": "10",
            "ONESLATE_LOG_LEVEL": "warning",
            "PYTHONUNBUFFERED": "1",
        }
        root = Path(__file__).resolve().parents[2]
        process = subprocess.Popen([sys.executable, "-c", SERVE], env=environment, cwd=root, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip()
            assert url.startswith("http://"), "the service did not start"
            yield url
            assert process.poll() is None, "the service died"
        finally:
            process.terminate()
            process.wait(timeout=20)
            if process.stdout is not None:
                process.stdout.close()


def test_every_answer_is_as_described(service_url: str, scaled: Callable[[int, int], int], figures: Figures) -> None:
    """All phases: examples, boundary values, valid and invalid random data, and calls that follow one another."""
    config = schemathesis.Config.from_dict(
        {
            "seed": 1,
            "generation": {"deterministic": True, "max-examples": scaled(50, 600), "database": "none"},
            # POST /v1/items answers 200 with an outcome per item: one that is refused is not there afterwards.
            "checks": {
                "ensure_resource_availability": {"enabled": False},
                "negative_data_rejection": {"expected-statuses": REFUSALS},
            },
        }
    )
    schema = schemathesis.openapi.from_url(f"{service_url}/openapi.json", config=config)
    calls: Counter[str] = Counter()
    failures = []
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError | FatalError):
            failures.append(str(vars(event) if hasattr(event, "__dict__") else event.exception))
        if isinstance(event, ScenarioFinished):
            calls[event.phase.value] += len(event.recorder.interactions)
            failures += _failures(event.recorder)
    assert not failures, f"{len(failures)} failures:\n" + "\n\n".join(failures[:10])
    assert calls.total() > scaled(500, 5000)
    assert calls["stateful"] > 50
    for phase, count in calls.items():
        figures("schemathesis", phase, count, "calls, none answered with 5xx or otherwise than described")


def _failures(recorder: ScenarioRecorder) -> list[str]:
    return [
        f"{check.name}: {check.failure_info.failure.title}: {check.failure_info.failure.message}"
        f"\n{check.failure_info.code_sample[:1500]}"
        for checks in recorder.checks.values()
        for check in checks
        if check.failure_info is not None
    ]


def test_the_description_names_every_route(service_url: str) -> None:
    paths = httpx.get(f"{service_url}/openapi.json").json()["paths"]
    assert {path: sorted(operations) for path, operations in paths.items()} == {
        "/v1/recommend": ["post"],
        "/v1/recommend/batch": ["post"],
        "/v1/events": ["post"],
        "/v1/users": ["get"],
        "/v1/users/{user_id}/history": ["delete", "get"],
        "/v1/items": ["post"],
        "/v1/items/{item_id}": ["delete", "get", "put"],
        "/v1/items/{item_id}/similar": ["get"],
        "/v1/models": ["get"],
        "/v1/models/rollback": ["post"],
        "/v1/models/{version}/activate": ["post"],
        "/v1/catalog": ["get"],
        "/v1/catalog/rollback": ["post"],
        "/livez": ["get"],
        "/readyz": ["get"],
        "/metrics": ["get"],
        "/version": ["get"],
    }
