"""A slate for people, on a terminal."""

from rich.console import Console
from rich.table import Table

from oneslate_client.answers import Slate
from oneslate_client.client import OneSlate
from oneslate_client.errors import ApiError


def show_slate(client: OneSlate, user_id: str, slate: Slate, console: Console) -> None:
    """Prints the slate with the items' titles, how it was made, and where its time went."""
    how = f"model {slate.model_version}, {slate.beam_width} beams" if slate.source == "model" else "popular items"
    reason = f"; {slate.reason.replace('_', ' ')}" if slate.reason else ""
    console.print(f"next for {user_id} ({how}{reason})", soft_wrap=True, markup=False, highlight=False)
    table = Table(box=None)
    for name in ("", "item", "title", "score", "semantic ID"):
        table.add_column(name, justify="right" if name in {"", "score"} else "left")
    for place, item in enumerate(slate.items, start=1):
        sid = "-".join(map(str, item.sid))
        table.add_row(str(place), item.item_id, title_of(client, item.item_id), f"{item.score:.2f}", sid)
    console.print(table)
    took = slate.took_ms
    stages = f"history {took.history:.1f}, features {took.features:.1f}, queue {took.queue:.1f}"
    console.print(f"took {took.total:.1f} ms: {stages}, inference {took.inference:.1f}", highlight=False)
    if slate.degraded:
        console.print("degraded: less than the service gives when all is well", style="yellow")


def title_of(client: OneSlate, item_id: str) -> str:
    """Empty where there is none, or the key may not read items."""
    try:
        return client.item(item_id).title
    except (ApiError, ValueError):
        return ""
