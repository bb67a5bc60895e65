"""The client against the API's description: every route, every field of a request, every member of an answer."""

import inspect
import re
from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel

from oneslate_client import AsyncOneSlate, OneSlate, answers, calls, requests
from oneslate_client.calls import Call
from service.app import create_app
from service.settings import Settings

SAMPLES: dict[str, Call[Any]] = {
    "recommend": calls.recommend("u", 1, {}),
    "recommend_batch": calls.recommend_batch([]),
    "send_events": calls.send_events([]),
    "history": calls.history("u"),
    "forget": calls.forget("u"),
    "some_users": calls.some_users(1),
    "item": calls.item("i"),
    "put_item": calls.put_item("i", {}),
    "remove_item": calls.remove_item("i"),
    "change_items": calls.change_items([]),
    "similar": calls.similar("i", 1),
    "catalog": calls.catalog(1),
    "roll_back_catalog": calls.roll_back_catalog("v"),
    "models": calls.models(),
    "activate": calls.activate("m", 1.0),
    "roll_back_model": calls.roll_back_model(None),
    "ready": calls.ready(),
    "version": calls.version(),
}
NOT_FOR_CLIENTS = {("get", "/livez"), ("get", "/metrics")}
REQUESTS: dict[str, type[BaseModel]] = {
    "RecommendBody": requests.SlateRequest,
    "HistoryEvent": requests.PastEvent,
    "FilterBody": requests.TagFilter,
    "EventBody": requests.Event,
    "ItemChangeBody": requests.ItemChange,
}
ANSWERS: dict[str, type[BaseModel]] = {
    "RecommendAnswer": answers.Slate,
    "ItemAnswer": answers.SlateItem,
    "AlternativeAnswer": answers.Alternative,
    "ExplainedItemAnswer": answers.ExplainedItem,
    "ExplainedCodeAnswer": answers.ExplainedCode,
    "RunnerUpAnswer": answers.RunnerUp,
    "TookMs": answers.TookMs,
    "BatchResult": answers.BatchResult,
    "EventResult": answers.EventResult,
    "ItemResult": answers.ItemResult,
    "CatalogItemAnswer": answers.Item,
    "SimilarAnswer": answers.Similar,
    "SimilarItemAnswer": answers.SimilarItem,
    "HistoryAnswer": answers.History,
    "HistoryEventAnswer": answers.HistoryEvent,
    "UsersAnswer": answers.Users,
    "CatalogAnswer": answers.Catalog,
    "CatalogVersionAnswer": answers.CatalogVersion,
    "RollbackAnswer": answers.CatalogRollback,
    "ModelsAnswer": answers.Models,
    "ModelAnswer": answers.RegisteredModel,
    "ReadyAnswer": answers.Ready,
    "VersionAnswer": answers.Version,
    "ProblemBody": answers.Problem,
}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return create_app(Settings(runner="fake")).openapi()


def test_every_route_has_a_call(described: dict[str, Any]) -> None:
    patterns = {
        (method, path): re.compile(re.sub(r"\{\w+\}", "[a-z]", path) + "$")
        for path, operations in described["paths"].items()
        for method in operations
    }
    called = set()
    for name, call in SAMPLES.items():
        [route] = [
            key for key, pattern in patterns.items() if key[0] == call.method.lower() and pattern.match(call.path)
        ]
        called.add(route)
        parameters = described["paths"][route[1]][route[0]].get("parameters", [])
        known = {one["name"] for one in parameters if one["in"] == "query"}
        assert set(call.params or ()) == known, name
        assert (call.body is not None) == ("requestBody" in described["paths"][route[1]][route[0]]), name
    assert called == set(patterns) - NOT_FOR_CLIENTS


def test_requests_have_every_field_and_no_other(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    for name, model in REQUESTS.items():
        assert set(model.model_fields) == set(schemas[name]["properties"]), name
        needed = {field for field, info in model.model_fields.items() if info.is_required()}
        assert needed <= set(schemas[name].get("required", ())), name
    options = set(get_type_hints(requests.SlateOptions))
    assert options == set(requests.SlateRequest.model_fields) - {"user_id", "slate_size"}
    fields = set(get_type_hints(requests.ItemFields))
    assert fields == set(requests.ItemChange.model_fields) - {"item_id", "removed"}
    assert fields == set(schemas["ItemBody"]["properties"])
    assert set(calls.activate("m", 0.5).body or ()) == set(schemas["ActivateBody"]["properties"])
    assert set(calls.roll_back_model("m").body or ()) == set(schemas["LeaveBody"]["properties"])
    assert set(calls.roll_back_catalog("v").body or ()) == set(schemas["RollbackBody"]["properties"])


def test_answers_have_every_member_and_no_other(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    envelopes = {"BatchAnswer", "EventsAnswer", "ItemsAnswer", "LiveAnswer", "ProblemFieldError"}
    assert {name for name in schemas if not name.endswith("Body")} - envelopes - set(REQUESTS) <= set(ANSWERS)
    for name, model in ANSWERS.items():
        assert set(model.model_fields) == set(schemas[name]["properties"]), name


def test_both_clients_have_the_same_methods() -> None:
    def methods(client: type) -> dict[str, inspect.Signature]:
        return {
            name: inspect.signature(method)
            for name, method in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(OneSlate) == methods(AsyncOneSlate)
    assert set(methods(OneSlate)) == set(SAMPLES) | {"close"}
