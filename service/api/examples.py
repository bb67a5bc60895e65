"""What the OpenAPI description says in words and by example; tests hold every example against its schema."""

from collections.abc import Mapping
from typing import Any, Final

DESCRIPTION: Final = """What should this user see next, as a whole slate?

Errors are `application/problem+json` (RFC 9457): `type` says which kind it is and stays the same, `errors` names places
by JSON pointers. Whatever was read as a request is answered with an `X-Request-ID`, which finds it in the log; send
your own to choose it. A path that is not here answers 404, another method 405 with `Allow`."""

TAGS: Final[tuple[dict[str, str], ...]] = (
    {"name": "recommend", "description": "Slates."},
    {"name": "events", "description": "What users did."},
    {"name": "users", "description": "What is kept of users."},
    {"name": "items", "description": "The live catalog."},
    {"name": "models", "description": "Which model is in service."},
    {"name": "operations", "description": "For probes, Prometheus and clients that ask what runs; no key is needed."},
)

_SLATE: Final[dict[str, Any]] = {
    "recommendation_id": "5d1f0c6c2ce94bb69fbf8b2c1a7f3e90",
    "model_version": "2025-11-20-3f9a02bd",
    "catalog_version": "3f9a02bd.1732100000250-0",
    "beam_width": 32,
    "source": "model",
    "degraded": False,
    "reason": None,
    "items": [
        {"item_id": "item-7", "score": -2.125, "sid": [12, 3, 40]},
        {"item_id": "item-42", "score": -3.5, "sid": [12, 9, 1]},
    ],
    "score": -5.625,
    "reward": None,
    "propensity": None,
    "seed": None,
    "alternatives": [],
    "explanation": None,
    "took_ms": {"history": 0.6, "features": 0.2, "queue": 1.1, "inference": 14.8, "total": 17.3},
}
_FULL: Final[dict[str, Any]] = {
    "type": "urn:oneslate:problem:overloaded",
    "title": "Too many requests wait already",
    "status": 429,
    "detail": "256 requests wait already.",
}
_MODELS: Final[dict[str, Any]] = {
    "active": "2025-11-20-3f9a02bd",
    "canary": None,
    "canary_share": 0.0,
    "previous": ["2025-11-13-77c01e5a"],
    "serving": ["2025-11-20-3f9a02bd"],
    "models": [
        {
            "model_version": "2025-11-20-3f9a02bd",
            "created": "2025-11-20T10:53:20Z",
            "slate_size": 5,
            "metrics": {"item/recall@10": 0.125},
        }
    ],
}

EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "RecommendBody": {
        "from the stored history": {"user_id": "ann", "slate_size": 2, "exclude": ["item-3"]},
        "from a history in the request": {
            "user_id": "ann",
            "slate_size": 2,
            "history": [
                {"item_id": "item-1", "timestamp": 1732100000},
                {"item_id": "item-2", "timestamp": "2024-11-20T10:55:00Z", "value": 31.5},
            ],
        },
    },
    "BatchBody": {
        "two users": {"requests": [{"user_id": "ann", "slate_size": 2}, {"user_id": "ben", "slate_size": 1}]}
    },
    "EventsBody": {
        "one event": {
            "events": [
                {
                    "event_id": "0192f7a4-5c1e",
                    "user_id": "ann",
                    "item_id": "item-7",
                    "timestamp": 1732100300,
                    "recommendation_id": _SLATE["recommendation_id"],
                }
            ]
        }
    },
    "ItemBody": {"by its text": {"title": "A walk through Turin", "tags": ["travel", "short"], "group": "travel"}},
    "ItemsBody": {
        "add, hide and remove": {
            "items": [
                {"item_id": "item-2001", "title": "A walk through Turin", "tags": ["travel"]},
                {"item_id": "item-8", "available": False},
                {"item_id": "item-9", "removed": True},
            ]
        }
    },
    "RollbackBody": {"to an earlier version": {"catalog_version": "3f9a02bd.1732000000000-0"}},
    "ActivateBody": {"for all users": {}, "as a canary": {"share": 0.05}},
    "LeaveBody": {"leave this model": {"model_version": "2025-11-20-3f9a02bd"}},
    "RecommendAnswer": {"a slate": _SLATE},
    "BatchAnswer": {
        "one answered, one not": {
            "results": [
                {"status": 200, "answer": _SLATE, "problem": None, "retry_after_s": None},
                {"status": 429, "answer": None, "problem": _FULL, "retry_after_s": 1},
            ]
        }
    },
    "EventsAnswer": {"stored": {"results": [{"event_id": "0192f7a4-5c1e", "status": "stored"}]}},
    "HistoryAnswer": {
        "one event": {
            "user_id": "ann",
            "events": [{"item_id": "item-7", "action": "view", "timestamp": 1732100300.0, "value": None}],
            "num_seen": 1,
        }
    },
    "UsersAnswer": {"two users": {"user_ids": ["ann", "ben"]}},
    "SimilarAnswer": {
        "one item": {
            "item_id": "item-7",
            "catalog_version": "3f9a02bd.1732100000250-0",
            "items": [{"item_id": "item-42", "num_shared": 1, "cosine": 0.75}],
        }
    },
    "CatalogItemAnswer": {
        "an item": {
            "item_id": "item-2001",
            "title": "A walk through Turin",
            "text": "",
            "tags": ["travel", "short"],
            "group": "travel",
            "available": True,
            "sid": [12, 9, 2],
            "num_events": 0,
            "catalog_version": "3f9a02bd.1732100000250-0",
        }
    },
    "ItemResult": {"added": {"item_id": "item-2001", "status": "added", "sid": [12, 9, 2]}},
    "ItemsAnswer": {
        "added and changed": {
            "results": [
                {"item_id": "item-2001", "status": "added", "sid": [12, 9, 2]},
                {"item_id": "item-8", "status": "changed", "sid": [4, 1, 7]},
            ]
        }
    },
    "CatalogAnswer": {
        "after one change": {
            "catalog_version": "3f9a02bd.1732100000250-0",
            "bundle_version": "3f9a02bd",
            "num_items": 12001,
            "num_shown": 11984,
            "versions": [
                {"catalog_version": "3f9a02bd.1732100000250-0", "changed_at": 1732100000.25, "num_changes": 1}
            ],
        }
    },
    "RollbackAnswer": {"one item back": {"catalog_version": "3f9a02bd.1732103600000-0", "num_changes": 1}},
    "ModelsAnswer": {"one model": _MODELS},
    "LiveAnswer": {"alive": {"status": "ok"}},
    "ReadyAnswer": {
        "ready, without Redis": {"status": "ready", "reasons": [], "degraded": ["history_unavailable"]},
        "not ready": {"status": "not_ready", "reasons": ["starting"], "degraded": []},
    },
    "VersionAnswer": {
        "a service": {
            "version": "0.1.0",
            "model_version": "2025-11-20-3f9a02bd",
            "catalog_version": "3f9a02bd.1732100000250-0",
            "num_items": 12001,
            "provider": "cpu",
            "precision": "float32",
            "slate_size": 5,
            "beam_width": 32,
            "max_beam_width": 128,
            "actions": ["view", "watch"],
            "filters": ["kids"],
            "durability": "everysec",
        }
    },
}
"""By schema, each with a name."""
