"""A typed client of OneSlate's HTTP API: timeouts, retries that do no harm, one small tree of errors.

from oneslate_client import Event, OneSlate

with OneSlate("http://127.0.0.1:8000") as client:
    slate = client.recommend("ann", 5)
    client.send_events([Event(user_id="ann", item_id=slate.items[0].item_id)])
"""

from oneslate_client.client import AsyncOneSlate, OneSlate
from oneslate_client.errors import ApiError, FieldError, OneSlateError, TryLater, UnexpectedAnswer, Unreachable
from oneslate_client.policy import RetryPolicy
from oneslate_client.requests import Event, ItemChange, PastEvent, SlateRequest, TagFilter

__all__ = [
    "ApiError", "AsyncOneSlate", "Event", "FieldError", "ItemChange", "OneSlate", "OneSlateError", "PastEvent",
    "RetryPolicy", "SlateRequest", "TagFilter", "TryLater", "UnexpectedAnswer", "Unreachable",
]  # fmt: skip
