"""The end of `oneslate demo`: replays real events of the log through the API and shows two users their slates."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from model_export.data import PreparedData
from service.errors import OneSlateError

_NUM_REPLAYED_USERS = 50
_NUM_SHOWN_USERS = 2
_EVENTS_PER_USER = 30
_EVENTS_PER_POST = 500
_SHOWN_HISTORY = 8


class DemoError(OneSlateError):
    """The service did not answer as it should."""


@dataclass(frozen=True)
class _User:
    """A user of the log and where their newest events lie."""

    user_id: str
    places: "np.ndarray[tuple[int], np.dtype[np.int64]]"


class Tour:
    """Talks to a running service as a client would."""

    def __init__(self, url: str, prepared: PreparedData, console: Console) -> None:
        self._url = url
        self._prepared = prepared
        self._console = console
        self._client = httpx.Client(base_url=url, timeout=10.0)
        # Logs of public data end years ago; moved so that they end now, ages mean what they meant in training.
        self._end_ms = int(datetime.now(UTC).timestamp() * 1000)
        self._last_ms = int(prepared.timestamp_ms_E.max())

    def run(self) -> None:
        """Replays, recommends and shows."""
        users = _users(self._prepared)
        stored, duplicate = self._replay(users)
        replay = f"replayed {stored:,} events of {len(users)} users through POST /v1/events, moved in time to end now"
        self._console.print(
            f"  {replay}" + (f"; {duplicate:,} were known already" if duplicate else ""), highlight=False
        )
        for user in users[:_NUM_SHOWN_USERS]:
            self._show(user)
        body = json.dumps({"user_id": users[0].user_id, "slate_size": self._prepared.slate_size})
        self._console.print("\nAsk for a slate yourself:\n", highlight=False)
        self._console.print(
            f"  curl -s {self._url}/v1/recommend -H 'content-type: application/json' -d '{body}'",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
        self._console.print(f"\nEverything else the service does: {self._url}/docs", highlight=False)

    def _replay(self, users: list[_User]) -> tuple[int, int]:
        events = [self._event(user.user_id, int(place)) for user in users for place in user.places]
        counts = {"stored": 0, "duplicate": 0}
        for start in range(0, len(events), _EVENTS_PER_POST):
            answer = self._post("/v1/events", {"events": events[start : start + _EVENTS_PER_POST]})
            for result in answer["results"]:
                if result["status"] not in counts:
                    raise DemoError(f"the service refused an event of the log: {json.dumps(result)}")
                counts[result["status"]] += 1
        return counts["stored"], counts["duplicate"]

    def _event(self, user_id: str, place: int) -> dict[str, Any]:
        prepared = self._prepared
        event: dict[str, Any] = {
            "event_id": f"demo-{place}",
            "user_id": user_id,
            "item_id": prepared.items["item_id"][int(prepared.item_E[place])],
            "action": prepared.actions[int(prepared.action_E[place])].name,
            "timestamp": (int(prepared.timestamp_ms_E[place]) - self._last_ms + self._end_ms) / 1000,
        }
        if not np.isnan(value := float(prepared.value_E[place])):
            event["value"] = value
        return event

    def _show(self, user: _User) -> None:
        answer = self._post("/v1/recommend", {"user_id": user.user_id, "slate_size": self._prepared.slate_size})
        titles = dict(zip(self._prepared.items["item_id"], self._prepared.items["title"], strict=True))
        tags = dict(zip(self._prepared.items["item_id"], self._prepared.items["tags"].to_list(), strict=True))
        history = Table(title=f"\nuser {user.user_id}: newest events", title_justify="left", box=None)
        for heading in ("when", "action", "value", "item"):
            history.add_column(heading)
        for place in user.places[::-1][:_SHOWN_HISTORY]:
            event = self._event(user.user_id, int(place))
            ago = timedelta(milliseconds=self._end_ms - int(event["timestamp"] * 1000))
            value = f"{event['value']:g}" if "value" in event else ""
            history.add_row(_ago(ago), event["action"], value, titles[event["item_id"]] or event["item_id"])
        self._console.print(history)
        how = f"source {answer['source']}, {answer['took_ms']['total']:.1f} ms"
        slate = Table(title=f"\nuser {user.user_id}: next slate ({how})", title_justify="left", box=None)
        for heading in ("", "item", "tags", "score", "semantic ID"):
            slate.add_column(heading)
        for number, item in enumerate(answer["items"], start=1):
            slate.add_row(
                str(number),
                titles[item["item_id"]] or item["item_id"],
                ", ".join(tags[item["item_id"]] or ())[:40],
                f"{item['score']:.2f}",
                "-".join(map(str, item["sid"])),
            )
        self._console.print(slate)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            response = self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise DemoError(f"{self._url}{path} did not answer: {error}") from error
        if response.status_code != httpx.codes.OK:
            raise DemoError(f"{self._url}{path} answered {response.status_code}: {response.text[:300]}")
        answer: dict[str, Any] = response.json()
        return answer


def _users(prepared: PreparedData) -> list[_User]:
    """The users whose log goes on longest, those with a fair history first."""
    first_E = np.flatnonzero(np.diff(prepared.segment_E, prepend=-1))
    ends_E = np.append(first_E[1:], prepared.num_events)
    by_end = np.argsort(-prepared.timestamp_ms_E[ends_E - 1], kind="stable")
    fair = [segment for segment in by_end if ends_E[segment] - first_E[segment] >= _SHOWN_HISTORY]
    chosen = (fair or list(by_end))[:_NUM_REPLAYED_USERS]
    return [
        _User(
            prepared.user_id_E[int(first_E[segment])],
            np.arange(max(first_E[segment], ends_E[segment] - _EVENTS_PER_USER), ends_E[segment]),
        )
        for segment in chosen
    ]


def _ago(age: timedelta) -> str:
    seconds = int(age.total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"
