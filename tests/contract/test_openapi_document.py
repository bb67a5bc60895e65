"""docs/openapi.json: what the application makes, and a description that clients can be made from."""

import json
import re
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from live_http import fake_settings, live_client

from service.api.openapi import rendered
from service.app import create_app
from service.problems import PROBLEM_TYPES
from service.settings import Settings

PINNED = (Path(__file__).parents[2] / "docs" / "openapi.json").read_text()
DOCUMENT: dict[str, Any] = json.loads(PINNED)
OPERATIONS: dict[str, dict[str, Any]] = {
    f"{method} {path}": operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
REQUEST_PROBLEMS = {"malformed-request", "request-timeout", "head-too-large", "too-many-connections", "internal-error"}


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    found: Any = part
    while "$ref" in found:
        reference, found = found["$ref"], DOCUMENT
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
    assert isinstance(found, dict)
    return found


def media(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where it stands, its type, and the media object."""
    parts = {"request": operation.get("requestBody", {}), **operation["responses"]}
    for place, part in parts.items():
        for media_type, content in resolved(part).get("content", {}).items():
            yield place, media_type, content


def validator(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for({"allOf": [schema], "components": DOCUMENT["components"]}, validate_formats=True)


def test_the_pinned_document_is_what_the_application_makes() -> None:
    made = rendered(create_app(Settings(runner="fake")))
    if made != PINNED:
        changes = [*unified_diff(PINNED.splitlines(), made.splitlines(), "pinned", "made", lineterm="", n=1)]
        pytest.fail("\n".join(["the API has changed: run `oneslate openapi > docs/openapi.json`", *changes[:40]]))


def test_operations_can_become_methods() -> None:
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    for operation in OPERATIONS.values():
        assert re.fullmatch(r"[a-z]+(_[a-z]+){0,3}", operation["operationId"])
        assert len(operation["summary"]) > 5
        assert not operation["summary"].endswith(".")
        assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    references = set(re.findall(r'"\$ref": "#/components/(\w+)/([\w-]+)"', PINNED))
    there = {
        (kind, name)
        for kind, components in DOCUMENT["components"].items()
        for name in components
        if kind != "securitySchemes"
    }
    assert references <= there
    # A problem of one event or item stands inside of an answer; a wrong method is none of any operation.
    inside = {"unknown-item", "unknown-action", "refused-event", "method-not-allowed"}
    assert there - references == {("examples", code) for code in inside}


@pytest.mark.parametrize("name", OPERATIONS)
def test_problems_are_named_one_by_one(name: str) -> None:
    operation, known = OPERATIONS[name], {kind.code: kind for kind in PROBLEM_TYPES}
    declared = {}
    for place, media_type, content in media(operation):
        if media_type == "application/problem+json":
            codes = {uri.rsplit(":", 1)[1] for uri in content["schema"]["properties"]["type"]["enum"]}
            assert set(content["examples"]) == codes
            assert {known[code].status for code in codes} == {int(place)}
            declared[place] = codes
    every = set().union(*declared.values())
    assert every >= REQUEST_PROBLEMS
    assert ("security" in operation) == ("401" in declared) == ("rate-limited" in every)
    assert ("requestBody" in operation) == ("malformed-json" in every)
    for status, response in operation["responses"].items():
        assert ("Retry-After" in resolved(response).get("headers", {})) == (status == "429")


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_body_has_examples_that_its_schema_allows(name: str) -> None:
    for place, media_type, content in media(OPERATIONS[name]):
        if media_type == "text/plain":
            continue
        assert content["examples"], place
        against = validator(content["schema"])
        for example in content["examples"].values():
            against.validate(resolved(example)["value"])


def test_examples_of_requests_are_what_a_service_takes() -> None:
    with live_client(fake_settings()) as client:
        for name, operation in OPERATIONS.items():
            method, path = name.split()
            for place, _, content in media(operation):
                if place != "request":
                    continue
                for example in content["examples"].values():
                    answer = client.request(method, re.sub(r"{\w+}", "item-2001", path), json=example["value"])
                    # There is no such model and no such version of the catalog here.
                    assert answer.status_code in {200, 404, 409}, answer.text
                    expected = {"/v1/catalog/rollback": 409, "/v1/models/{version}/activate": 404}
                    assert answer.status_code == expected.get(path, 200), answer.text
