"""The made-up catalog: series of five short videos on subjects of topics of groups, and what nobody sees of them.

Shapes: I items, T topics.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from model_export.data.log import ITEM_SCHEMA
from model_export.data.simulator.config import SimulatorConfig
from model_export.data.simulator.topics import ANGLES, FRAMES, TOPICS

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

PARTS_PER_SERIES = len(ANGLES)
SUBJECTS_PER_TOPIC = 8
DAY_MS = 86_400_000
TOPIC_NAMES = tuple((group, topic) for group, topics in TOPICS.items() for topic in topics)
"""All (group, topic) pairs; topics of a group stand together."""
GROUP_T = np.array([list(TOPICS).index(group) for group, _ in TOPIC_NAMES])
LAST_PUBLISHED = 0.95
"""Part of the log's time after which nothing new appears."""
POPULARITY_SLOPE = 0.8


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedItems:
    """The catalog by row: its taxonomy, and the latent numbers that behaviour depends on."""

    topic_I: Int
    subject_I: Int
    """Numbered through all topics."""
    series_I: Int
    frame_I: Int
    """How the series treats its subject: place in `FRAMES`."""
    previous_I: Int
    """Row of the part before it; -1: a first part."""
    next_I: Int
    """Row of the part after it; -1: a last part."""
    quality_I: Float
    duration_s_I: Float
    popularity_I: Float
    """Share of the popularity draws of the logging policy; a long tail."""
    published_ms_I: Int
    """Milliseconds since the log began from which the item exists."""
    satiety_T: Float
    """How fast a topic tires, around 1."""

    def __len__(self) -> int:
        return len(self.topic_I)

    @property
    def group_I(self) -> Int:
        return GROUP_T[self.topic_I]

    @property
    def item_ids(self) -> list[str]:
        return [f"video-{row + 1:05d}" for row in range(len(self))]


def make_items(config: SimulatorConfig, rng: np.random.Generator) -> SimulatedItems:
    """A catalog of series of five parts, dealt to the topics in turn."""
    row_I = np.arange(config.num_items)
    series_I, part_I = np.divmod(row_I, PARTS_PER_SERIES)
    round_I, topic_I = np.divmod(series_I, len(TOPIC_NAMES))
    num_series = int(series_I[-1]) + 1
    quality_I = config.quality_spread * (
        0.7 * rng.standard_normal(num_series)[series_I] + 0.7 * rng.standard_normal(config.num_items)
    )
    appeal_I = quality_I + config.quality_spread * rng.standard_normal(num_series)[series_I] - 0.3 * part_I
    rank_I = np.empty(config.num_items)
    rank_I[np.argsort(-appeal_I, kind="stable")] = row_I
    popularity_I = 1.0 / (rank_I + 10.0) ** POPULARITY_SLOPE
    is_late = rng.random(num_series) < config.late_share
    is_late[0] = False  # something must be there to show
    published = np.where(is_late, rng.random(num_series), 0.0) * config.num_days * DAY_MS * LAST_PUBLISHED
    follows_I = part_I > 0
    precedes_I = (part_I < PARTS_PER_SERIES - 1) & (row_I < config.num_items - 1)
    return SimulatedItems(
        topic_I=topic_I,
        subject_I=topic_I * SUBJECTS_PER_TOPIC + round_I % SUBJECTS_PER_TOPIC,
        series_I=series_I,
        frame_I=(round_I // SUBJECTS_PER_TOPIC + round_I + topic_I) % len(FRAMES),
        previous_I=np.where(follows_I, row_I - 1, -1),
        next_I=np.where(precedes_I, row_I + 1, -1),
        quality_I=quality_I,
        duration_s_I=np.round(rng.uniform(45.0, 150.0, config.num_items), 1),
        popularity_I=popularity_I / popularity_I.sum(),
        published_ms_I=published.astype(np.int64)[series_I],
        satiety_T=np.exp(0.5 * config.sensitivity_spread * rng.standard_normal(len(TOPIC_NAMES))),
    )


def items_frame(items: SimulatedItems) -> pl.DataFrame:
    """The catalog in the columns of format `table`: titles are unique; title and text tell topic and subject."""
    rows = []
    for row, item_id in enumerate(items.item_ids):
        group, topic = TOPIC_NAMES[items.topic_I[row]]
        subject = TOPICS[group][topic][items.subject_I[row] % SUBJECTS_PER_TOPIC]
        frame, angle = FRAMES[items.frame_I[row]], ANGLES[row % PARTS_PER_SERIES]
        volume = int(items.series_I[row]) // (len(TOPIC_NAMES) * SUBJECTS_PER_TOPIC * len(FRAMES))
        series = f"{subject} {frame}" + (f" {volume + 1}" if volume else "")
        title = f"{series}, part {row % PARTS_PER_SERIES + 1}: {angle}"
        text = f"A short video about {subject.lower()} {frame.lower()}, on {topic} in {group}: {angle}."
        rows.append((item_id, title, text, [group, topic, subject.lower()], group, True))
    columns = ("item_id", "title", "text", "tags", "group", "available")
    return pl.DataFrame(rows, schema={name: ITEM_SCHEMA[name] for name in columns}, orient="row")
