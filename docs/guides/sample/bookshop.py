"""Writes the sample log beside this file, the same each time: `python docs/guides/sample/bookshop.py`.

200 readers visit a made-up bookshop several times. Whoever takes a volume of a series tends to take the next one, and
readers keep to two shelves: that is all there is to learn. Three rows of the events are bad on purpose.
"""

import csv
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

FOLDER = Path(__file__).parent
SHELVES = {
    "Sea stories": ("The Pilot's Chart", "Salt and Tar", "North of the Lighthouse", "A Harbour in Winter"),
    "Mysteries": ("The Locked Orchard", "Eleven Clocks", "The Wrong Umbrella", "Ink on the Sill"),
    "Cookery": ("Bread by Hand", "The Patient Stew", "A Year of Preserves", "Knife and Board"),
    "Gardening": ("The Small Orchard", "Roots and Frost", "A Wall of Roses", "Seeds for August"),
    "Space": ("The Quiet Orbit", "Station Twelve", "A Map of Dust", "Light Delay"),
    "History": ("The Salt Road", "Bridges of Stone", "The Weavers' Town", "Letters from the Fort"),
}
NUM_VOLUMES = 3
NUM_READERS = 200
BEGIN = datetime(2026, 9, 1, 8, tzinfo=UTC)
BAD_ROWS = {
    400: ["reader-014", "", "2026-09-09T10:00:00Z", "view"],
    800: ["reader-090", "book-011", "yesterday", "view"],
    1200: ["reader-131", "book-020", "2026-10-01T09:30:00Z"],
}
"""Before which event they come: no item, no time, a column too few."""


def main() -> None:
    """Writes `items.csv` and `events.csv`."""
    series: list[list[str]] = [[] for _ in range(sum(map(len, SHELVES.values())))]
    with (FOLDER / "items.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["item_id", "title", "tags", "group"])
        for number, (shelf, name) in enumerate((shelf, name) for shelf, names in SHELVES.items() for name in names):
            for volume in range(1, NUM_VOLUMES + 1):
                item_id = f"book-{number * NUM_VOLUMES + volume:03}"
                series[number].append(item_id)
                tags = [shelf, "Series starter"] if volume == 1 else [shelf]
                rows.writerow([item_id, f"{name}, volume {volume}", "|".join(tags), shelf])
    with (FOLDER / "events.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["user_id", "item_id", "timestamp", "action"])
        for line, event in enumerate(sorted(events(series, random.Random(7)), key=lambda event: event[2]), start=2):
            if line in BAD_ROWS:
                rows.writerow(BAD_ROWS[line])
            rows.writerow(event)


def events(series: list[list[str]], draw: random.Random) -> list[list[str]]:
    """Rows of user, item, time and action."""
    num_shelves, per_shelf = len(SHELVES), len(series) // len(SHELVES)
    rows = []
    for reader in range(NUM_READERS):
        shelves = draw.sample(range(num_shelves), 2)
        at = BEGIN + timedelta(hours=draw.randrange(24 * 40))
        for _ in range(draw.randrange(1, 5)):
            shelf = draw.choice(shelves) if draw.random() < 0.9 else draw.randrange(num_shelves)
            books = [book for one in series[shelf * per_shelf : (shelf + 1) * per_shelf] for book in one]
            place = draw.randrange(len(books))
            for _ in range(draw.randrange(2, 6)):
                action = "buy" if draw.random() < 0.3 else "view"
                rows.append([f"reader-{reader:03}", books[place], at.strftime("%Y-%m-%dT%H:%M:%SZ"), action])
                place = (place + 1 if draw.random() < 0.8 else draw.randrange(len(books))) % len(books)
                at += timedelta(minutes=draw.randrange(1, 12))
            at += timedelta(hours=draw.randrange(20, 200))
    return rows


if __name__ == "__main__":
    main()
