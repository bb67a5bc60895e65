"""The description of the API: complete, and exact about the limits of what is in service."""

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from live_http import fake_settings, live_client

from service.app import create_app
from service.inference.fake_runner import FakeRunner, fake_manifest
from service.problems import PROBLEM_TYPES
from service.settings import FilterSettings, LimitSettings, Settings


@pytest.fixture(scope="module")
def schema() -> Iterator[dict[str, Any]]:
    settings = fake_settings(
        limits=LimitSettings(exclude=7, history=8, events=9, tags=6),
        filters={"kids": FilterSettings(any_of=frozenset({"even"}))},
    )
    with live_client(settings, runner=FakeRunner(fake_manifest(slate_size=4))) as client:
        yield client.get("/openapi.json").json()


def validator(schema: dict[str, Any], name: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", "components": schema["components"]})


@pytest.mark.parametrize(
    ("changes", "is_valid"),
    [
        ({}, True),
        ({"slate_size": 4}, True),
        ({"slate_size": 5}, False),
        ({"slate_size": 0}, False),
        ({"num_slates": 4}, True),
        ({"num_slates": 5}, False),
        ({"num_slates": 0}, False),
        ({"beam_width": 16}, True),
        ({"beam_width": 17}, False),
        ({"beam_width": 0}, False),
        ({"exclude": ["a"] * 7}, True),
        ({"exclude": ["a"] * 8}, False),
        ({"seen_actions": ["view"]}, True),
        ({"seen_actions": ["buy"]}, False),
        ({"filter": "kids"}, True),
        ({"max_per_group": 2}, True),
        ({"temperature": 0.7, "seed": 3}, True),
        ({"temperature": 0}, False),
        ({"diversity": 0.5}, True),
        ({"diversity": -1}, False),
        ({"max_per_group": 0}, False),
        ({"filter": "adults"}, False),
        ({"filter": {"any_of": ["x"]}}, True),
        ({"filter": {}}, False),
        ({"filter": {"any_of": ["x"] * 7}}, False),
        ({"history": [{"item_id": "a", "timestamp": 1}] * 8}, True),
        ({"history": [{"item_id": "a", "timestamp": 1}] * 9}, False),
        ({"history": [{"item_id": "a", "timestamp": "2024-01-01T00:00:00Z", "action": "watch", "value": 1.5}]}, True),
        ({"history": [{"item_id": "a", "timestamp": 1, "action": "buy"}]}, False),
        ({"surprise": 1}, False),
    ],
)
def test_the_description_says_what_the_service_does(
    schema: dict[str, Any], changes: dict[str, Any], is_valid: bool
) -> None:
    body = {"user_id": "ann", "slate_size": 1, **changes}
    assert validator(schema, "RecommendBody").is_valid(body) == is_valid


def test_every_operation_declares_its_problems(schema: dict[str, Any]) -> None:
    declared = {
        (path, method): sorted(operation["responses"])
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    }
    every = {"400", "408", "431", "500", "503"}  # no request, too slow, too large a head, our mistake, one too many
    keyed = {"401", "403", "429"} | every  # of every route that a key may be asked for
    body = {"413", "415", "422"}
    assert declared == {
        ("/v1/recommend", "post"): sorted({"200"} | keyed | body),
        ("/v1/recommend/batch", "post"): sorted({"200"} | keyed | body),
        ("/v1/events", "post"): sorted({"200"} | keyed | body),
        ("/v1/items/{item_id}/similar", "get"): sorted({"200", "404", "422"} | keyed),
        ("/v1/users", "get"): sorted({"200", "422"} | keyed),
        ("/v1/users/{user_id}/history", "get"): sorted({"200", "422"} | keyed),
        ("/v1/users/{user_id}/history", "delete"): sorted({"204", "422"} | keyed),
        ("/v1/items", "post"): sorted({"200"} | keyed | body),
        ("/v1/catalog", "get"): sorted({"200", "422"} | keyed),
        ("/v1/catalog/rollback", "post"): sorted({"200", "409"} | keyed | body),
        ("/v1/models", "get"): sorted({"200", "409"} | keyed),
        ("/v1/models/{version}/activate", "post"): sorted({"200", "404", "409"} | keyed | body),
        ("/v1/models/rollback", "post"): sorted({"200", "404", "409"} | keyed | body),
        ("/v1/items/{item_id}", "get"): sorted({"200", "404", "422"} | keyed),
        ("/v1/items/{item_id}", "put"): sorted({"200", "409"} | keyed | body),
        ("/v1/items/{item_id}", "delete"): sorted({"204", "422"} | keyed),
        ("/livez", "get"): sorted({"200"} | every),
        ("/readyz", "get"): sorted({"200"} | every),
        ("/metrics", "get"): sorted({"200"} | every),
        ("/version", "get"): sorted({"200"} | every),
    }
    problem = schema["paths"]["/v1/recommend"]["post"]["responses"]["429"]
    assert list(problem["content"]) == ["application/problem+json"]
    assert "Retry-After" in problem["headers"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    assert len({kind.uri for kind in PROBLEM_TYPES}) == len(PROBLEM_TYPES)


async def test_before_it_is_up_the_service_says_so() -> None:
    import httpx

    app = create_app(Settings(runner="fake"))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["starting"])
        assert (await client.get("/livez")).status_code == 200
        answer = await client.post("/v1/recommend", json={"user_id": "a", "slate_size": 1})
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:oneslate:problem:not-ready")
        body = (await client.get("/openapi.json")).json()["components"]["schemas"]["RecommendBody"]
        assert "maximum" not in body["properties"]["slate_size"]
