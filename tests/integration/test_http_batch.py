"""Many users in one request: each is read, admitted, answered and fails by itself."""

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
from live_http import fake_settings, live_client

from service.history import MemoryHistoryStore
from service.inference.fake_runner import FakeRunner, fake_manifest
from service.inference.runner import Batch, Decoded
from service.settings import LimitSettings

BODY: dict[str, Any] = {"user_id": "ann", "slate_size": 3}


class BreakingRunner(FakeRunner):
    """Fails batches of one that exclude thirteen items; whole batches as well, until they are taken apart."""

    def run(self, batch: Batch) -> Decoded:
        if (batch.excluded_rows_BX >= 0).sum(1).max() == 13:
            raise RuntimeError("thirteen")
        return super().run(batch)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    settings = fake_settings(limits=LimitSettings(batch=6), deadline_ms=5000)
    runner = BreakingRunner(fake_manifest(slate_size=4))
    with live_client(settings, runner=runner, history=MemoryHistoryStore()) as client:
        yield client


def answers(client: httpx.Client, *requests: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/recommend/batch", json={"requests": requests})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    assert len(results) == len(requests)
    return results


def test_each_is_answered_as_it_would_be_alone(client: httpx.Client) -> None:
    requests = [{**BODY, "user_id": f"user-{n}", "exclude": [f"item-{n}"], "slate_size": 1 + n % 4} for n in range(6)]
    for request, result in zip(requests, answers(client, *requests), strict=True):
        alone = client.post("/v1/recommend", json=request).json()
        assert (result["status"], result["problem"], result["retry_after_s"]) == (200, None, None)
        for member in ("items", "score", "source", "reason", "beam_width", "model_version", "catalog_version"):
            assert result["answer"][member] == alone[member]
    assert len({result["answer"]["recommendation_id"] for result in answers(client, *requests)}) == 6


def test_a_bad_one_fails_alone_and_says_where(client: httpx.Client) -> None:
    bad = [
        ({**BODY, "slate_size": 5}, "/requests/1/slate_size"),
        ({**BODY, "surprise": 1}, "/requests/2/surprise"),
        ({"slate_size": 3}, "/requests/3/user_id"),
        ("not an object", "/requests/4"),
        ({**BODY, "filter": "unheard of"}, "/requests/5/filter"),
    ]
    good, *results = answers(client, BODY, *(request for request, _ in bad))
    assert good["status"] == 200
    for (_, pointer), result in zip(bad, results, strict=True):
        assert (result["status"], result["answer"]) == (422, None)
        assert result["problem"]["type"] == "urn:oneslate:problem:invalid-request"
        assert [error["pointer"] for error in result["problem"]["errors"]] == [pointer]


def test_what_the_runner_fails_is_a_lesser_answer_of_its_own(client: httpx.Client) -> None:
    thirteen = {**BODY, "exclude": [f"item-{n}" for n in range(13)], "max_per_group": 1}
    [alone] = answers(client, thirteen)
    assert (alone["answer"]["source"], alone["answer"]["reason"]) == ("popular", "model_unavailable")


def test_too_many_or_none_are_refused_as_a_whole(client: httpx.Client) -> None:
    for requests, status in (([BODY] * 7, 422), ([], 422), ("all", 422)):
        answer = client.post("/v1/recommend/batch", json={"requests": requests})
        assert (answer.status_code, answer.json()["type"]) == (status, "urn:oneslate:problem:invalid-request")


def test_answers_are_as_described(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    validator = jsonschema_rs.validator_for(
        {"$ref": "#/components/schemas/BatchAnswer", "components": schema["components"]}
    )
    body = client.post("/v1/recommend/batch", json={"requests": [BODY, 1]}).json()
    validator.validate(body)
    assert schema["components"]["schemas"]["BatchBody"]["properties"]["requests"]["maxItems"] == 6
