"""The made-up catalog of the simulator: groups, topics and series of short videos with readable titles."""

import random
from dataclasses import dataclass

import polars as pl

from model_export.data.log import ITEM_SCHEMA

PARTS_PER_SERIES = 5

TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "cooking": {
        "baking": ("Sourdough", "Rye Bread", "Croissants", "Bagels", "Shortcrust", "Meringue", "Focaccia", "Brioche"),
        "vegetables": ("Roast Squash", "Kimchi", "Ratatouille", "Leeks", "Beetroot", "Pickles", "Dal", "Fennel"),
        "grilling": ("Charcoal", "Smoked Trout", "Skewers", "Flatbread", "Marinades", "Ribs", "Halloumi", "Embers"),
    },
    "travel": {
        "cities": ("Lisbon", "Kyoto", "Montreal", "Istanbul", "Valparaiso", "Tallinn", "Hanoi", "Fez"),
        "hiking": ("Ridge Walks", "Alpine Huts", "Coast Paths", "Forest Trails", "Glaciers", "Maps", "Passes", "Fells"),
        "trains": ("Night Trains", "Funiculars", "Steam Lines", "Viaducts", "Depots", "Trams", "Signals", "Tickets"),
    },
    "music": {
        "guitar": ("Fingerstyle", "Chords", "Slide Guitar", "Open Tunings", "Flamenco", "Solos", "Picks", "Riffs"),
        "jazz": ("Swing", "Bebop", "Walking Bass", "Brushes", "Ballads", "Modal Jazz", "Stride Piano", "Big Bands"),
        "songwriting": ("Choruses", "Rhymes", "Bridges", "Melodies", "Lyrics", "Demos", "Harmonies", "Hooks"),
    },
    "science": {
        "astronomy": ("Comets", "Saturn", "Nebulae", "Eclipses", "Black Holes", "Meteors", "Telescopes", "The Moon"),
        "oceans": ("Coral Reefs", "Squid", "Tides", "Deep Trenches", "Whales", "Plankton", "Kelp", "Icebergs"),
        "brain": ("Memory", "Sleep", "Attention", "Language", "Habits", "Vision", "Dreams", "Pain"),
    },
    "sport": {
        "running": ("Marathons", "Hill Sprints", "Track Days", "Trail Runs", "Pacing", "Shoes", "Rest Days", "Relays"),
        "cycling": ("Gravel Rides", "Climbs", "Time Trials", "Bike Repair", "Sprints", "Descents", "Touring", "Gears"),
        "climbing": ("Bouldering", "Knots", "Crack Climbing", "Footwork", "Ice Climbing", "Belays", "Grips", "Routes"),
    },
    "home": {
        "gardening": ("Tomatoes", "Compost", "Roses", "Seedlings", "Herbs", "Pruning", "Ponds", "Orchards"),
        "woodwork": ("Dovetails", "Stools", "Hand Planes", "Bowls", "Oak Shelves", "Chisels", "Joinery", "Varnish"),
        "interiors": ("Small Kitchens", "Lamps", "Wallpaper", "Rugs", "Paint", "Attics", "Curtains", "Tiles"),
    },
    "technology": {
        "robots": ("Line Followers", "Robot Arms", "Drones", "Servos", "Sensors", "Grippers", "Walkers", "Rovers"),
        "photography": ("Portraits", "Night Skies", "Street", "Film Cameras", "Macro", "Light", "Lenses", "Prints"),
        "programming": ("Sorting", "Compilers", "Databases", "Parsers", "Games", "Networks", "Caches", "Regexes"),
    },
    "history": {
        "antiquity": ("Roman Roads", "Papyrus", "Aqueducts", "Bronze", "Temples", "Chariots", "Mosaics", "Harbours"),
        "exploration": ("Polar Voyages", "Silk Roads", "Charts", "Lost Ships", "Camps", "Tents", "Islands", "Atlases"),
        "inventions": ("Clocks", "Printing", "Steam Engines", "Radios", "Iron Bridges", "Locks", "Looms", "Balloons"),
    },
}  # fmt: skip
FRAMES = (
    "from Scratch",
    "Explained",
    "Step by Step",
    "in Practice",
    "for the Curious",
    "Up Close",
    "on a Budget",
    "Revisited",
)
ANGLES = ("first steps", "the right tools", "common mistakes", "a closer look", "putting it together")


@dataclass(frozen=True, kw_only=True)
class SimulatedItem:
    """A short video: one part of a series on a topic."""

    item_id: str
    title: str
    text: str
    tags: tuple[str, ...]
    group: str
    topic: int
    """Place among all topics."""
    series: int
    duration_s: float


def topic_names() -> list[tuple[str, str]]:
    """All (group, topic) pairs, in order; topics of a group stand together."""
    return [(group, topic) for group, topics in TOPICS.items() for topic in topics]


def make_items(num_items: int, rng: random.Random) -> list[SimulatedItem]:
    """A catalog of series of five parts, dealt to the topics in turn. Titles are unique."""
    names = topic_names()
    items = []
    for row in range(num_items):
        series, part = divmod(row, PARTS_PER_SERIES)
        round_number, topic = divmod(series, len(names))
        group, topic_name = names[topic]
        subjects = TOPICS[group][topic_name]
        subject = subjects[round_number % len(subjects)]
        volume, frame_number = divmod(round_number // len(subjects), len(FRAMES))
        frame = FRAMES[(frame_number + round_number + topic) % len(FRAMES)]
        name = f"{subject} {frame}" + (f" {volume + 1}" if volume else "")
        items.append(
            SimulatedItem(
                item_id=f"video-{row + 1:05d}",
                title=f"{name}, part {part + 1}: {ANGLES[part]}",
                text=f"A short video about {subject.lower()} and {topic_name} in {group}: {ANGLES[part]}.",
                tags=(group, topic_name, subject.lower()),
                group=group,
                topic=topic,
                series=series,
                duration_s=round(rng.uniform(20.0, 180.0), 1),
            )
        )
    return items


def items_frame(items: list[SimulatedItem]) -> pl.DataFrame:
    """The catalog in the columns of format `table`."""
    columns = ("item_id", "title", "text", "tags", "group")
    data = {column: [getattr(item, column) for item in items] for column in columns}
    frame = pl.DataFrame(data, schema={column: ITEM_SCHEMA[column] for column in columns})
    return frame.with_columns(available=pl.lit(True))
