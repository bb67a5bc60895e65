"""The end of `oneslate demo`: replays real events of the log through the API and shows two users their slates."""

import json
import time
from datetime import timedelta
from typing import Final, Self

from rich.console import Console
from rich.table import Table

from model_export.backfill import LogEvents, Sender, UserLog, UserLogs, newest_logs
from model_export.data.prepared import PreparedData
from oneslate_client import AsyncOneSlate, OneSlate
from service.errors import OneSlateError

_NUM_REPLAYED_USERS: Final = 50
_NUM_SHOWN_USERS: Final = 2
_EVENTS_PER_USER: Final = 30
_SHOWN_HISTORY: Final = 8


class DemoError(OneSlateError):
    """The service did not take what its own log holds."""


class Tour:
    """Talks to a running service as a client would; a context manager, for it keeps its connection."""

    def __init__(self, url: str, prepared: PreparedData, console: Console) -> None:
        self._url = url
        self._prepared = prepared
        self._console = console
        self._client = OneSlate(url)
        # Logs of public data end years ago; moved so that they end now, ages mean what they meant in training.
        self._events = LogEvents(prepared, end_now=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def run(self) -> None:
        """Replays, recommends and shows. Raises what `replay` does."""
        logs = self.replay()
        for log in logs[:_NUM_SHOWN_USERS]:
            self._show(log)
        body = json.dumps({"user_id": logs[0].user_id, "slate_size": self._prepared.slate_size})
        self._console.print("\nAsk for a slate yourself:\n", highlight=False)
        self._console.print(
            f"  curl -s {self._url}/v1/recommend -H 'content-type: application/json' -d '{body}'",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
        self._console.print(f"\nEverything else the service does: {self._url}/docs", highlight=False)

    def replay(self) -> UserLogs:
        """Sends the newest events of some users who have no history yet, and returns all of these users.

        Raises:
            DemoError: the service refuses an event.
            oneslate_client.OneSlateError: it does not answer, or not as it should.
        """
        # Those with a fair history first: they have more to show.
        logs = newest_logs(self._prepared, _EVENTS_PER_USER, at_least=_SHOWN_HISTORY)
        logs = (logs or newest_logs(self._prepared, _EVENTS_PER_USER))[:_NUM_REPLAYED_USERS]
        strangers = [log for log in logs if not self._client.history(log.user_id).events]
        sender = Sender(lambda: AsyncOneSlate(self._url), 1)
        sender.send(self._events.posts(strangers))
        if (sent := sender.sent).refusals:
            raise DemoError(f"the service refused events of the log: {sent.refusals[0][0]}")
        known = len(logs) - len(strangers)
        replayed = f"replayed {sent.num_stored + sent.num_duplicate:,} events of {len(strangers)} users"
        self._console.print(
            f"  {replayed} through POST /v1/events, moved in time to end now"
            + (f"; {known} had a history already" if known else ""),
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        return logs

    def model_version(self) -> str:
        """Of the model in service. Raises oneslate_client.OneSlateError."""
        return self._client.version().model_version

    def _show(self, log: UserLog) -> None:
        slate = self._client.recommend(log.user_id, self._prepared.slate_size)
        titles = dict(zip(self._prepared.items["item_id"], self._prepared.items["title"], strict=True))
        tags = dict(zip(self._prepared.items["item_id"], self._prepared.items["tags"].to_list(), strict=True))
        history = Table(title=f"\nuser {log.user_id}: newest events", title_justify="left", box=None)
        for heading in ("when", "action", "value", "item"):
            history.add_column(heading)
        for event in [*self._events.of(log)][: -_SHOWN_HISTORY - 1 : -1]:
            value = "" if event.value is None else f"{event.value:g}"
            title = titles[event.item_id] or event.item_id
            history.add_row(_ago(timedelta(seconds=time.time() - event.timestamp)), event.action, value, title)
        self._console.print(history)
        how = f"source {slate.source}, {slate.took_ms.total:.1f} ms"
        table = Table(title=f"\nuser {log.user_id}: next slate ({how})", title_justify="left", box=None)
        for heading in ("", "item", "tags", "score", "semantic ID"):
            table.add_column(heading)
        for number, item in enumerate(slate.items, start=1):
            table.add_row(
                str(number),
                titles[item.item_id] or item.item_id,
                ", ".join(tags[item.item_id] or ())[:40],
                f"{item.score:.2f}",
                "-".join(map(str, item.sid)),
            )
        self._console.print(table)


def _ago(age: timedelta) -> str:
    seconds = int(age.total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"
