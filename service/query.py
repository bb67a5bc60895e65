"""What is asked for, and what the model is given for it.

Legend: E events, S seen or excluded items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from service.bundle import Manifest
from service.catalog import TagFilter
from service.domain import item_key
from service.history import UserHistory
from service.inference.features import Kind, RequestInputs

_NO_KEYS: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
_Read = tuple[
    npt.NDArray[np.uint64],
    npt.NDArray[np.int64],
    npt.NDArray[np.int32],
    npt.NDArray[np.float32],
    npt.NDArray[np.uint64],
]
"""Item keys, times, the manifest's numbers of actions and values of events [E], and keys that count as seen [S]."""
_NOTHING: Final[_Read] = (
    _NO_KEYS, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32), _NO_KEYS
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PastEvent:
    """One event of a history that comes with the request."""

    item_id: str
    action: str
    timestamp_ms: int
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendQuery:
    """What is asked; names and sizes are already checked against the manifest."""

    user_id: str
    slate_size: int
    num_slates: int = 1
    """Whole slates asked for, the answered one included."""
    beam_width: int | None = None
    """Of the search; None: as the load allows."""
    history: Sequence[PastEvent] | None = None
    """In any order; replaces the stored one."""
    exclude: Sequence[str] = ()
    exclude_seen: bool = True
    seen_actions: frozenset[str] | None = None
    """Only events of these actions count as seen; None: all."""
    tag_filter: TagFilter | None = None
    max_per_group: int = 0
    """Most items of one group; 0: any number."""
    diversity: float = 0.0
    """As `Batch.diversities_B`."""
    temperature: float | None = None
    """Of a sampled slate, for which the bundle has the graph; None: the best."""
    seed: int = 0
    """Of a sampled slate; below 2^32."""
    continue_from: str | None = None
    """The slate that this one shall be the next after: what it and those before it showed is left out."""
    explain: bool = False
    """Whether to say why the slate came out as it did; the bundle has the graph for it."""
    deadline_ms: float
    tenant: str = ""
    """Whose request it is: tenants take turns in the queue."""

    @property
    def kind(self) -> Kind:
        """With which others it may share a run."""
        return Kind("generator" if self.temperature is None else "sampler", self.beam_width)


class QueryReader:
    """Makes the inputs of one model."""

    def __init__(self, manifest: Manifest) -> None:
        self._numbers = manifest.action_numbers
        self._stored_actions: tuple[tuple[str, ...], npt.NDArray[np.int32]] = ((), np.zeros(0, dtype=np.int32))

    def inputs(self, query: RecommendQuery, stored: UserHistory | None, now_ms: int) -> RequestInputs:
        """Of a query, from the history that it brings, or else from the stored one.

        Args:
            query: What is asked.
            stored: Of the user; None: it is not known.
            now_ms: Unix milliseconds.
        """
        if query.history is not None:
            keys_E, times_E, actions_E, values_E, seen_S = self._from_request(query, query.history)
        else:
            keys_E, times_E, actions_E, values_E, seen_S = self._from_store(query, stored)
        return RequestInputs(
            item_keys_E=keys_E,
            timestamps_ms_E=times_E,
            actions_E=actions_E,
            values_E=values_E,
            excluded_keys_S=np.concatenate([item_keys(query.exclude), seen_S]),
            tag_filter=query.tag_filter,
            max_per_group=query.max_per_group,
            diversity=query.diversity,
            num_slates=query.num_slates,
            beam_width=query.beam_width,
            temperature=1.0 if query.temperature is None else query.temperature,
            seed=query.seed,
            now_ms=now_ms,
            purpose=query.kind.purpose,
        )

    def _from_store(self, query: RecommendQuery, stored: UserHistory | None) -> _Read:
        if stored is None:
            return _NOTHING
        entries_E, seen_S = stored.entries_N, stored.seen_S
        numbers_E = self._manifest_numbers(stored.action_names)[entries_E["action"]]
        seen = [_NO_KEYS]
        if query.exclude_seen:
            for arrays in (entries_E, seen_S):
                keys = arrays["item_key"]
                if query.seen_actions is not None:
                    counts = np.array([name in query.seen_actions for name in stored.action_names], dtype=bool)
                    keys = keys[counts[arrays["action"]]]
                seen.append(keys)
        if len(numbers_E) and not numbers_E.all():  # actions of another model's time mean nothing to this one
            entries_E, numbers_E = entries_E[numbers_E > 0], numbers_E[numbers_E > 0]
        return entries_E["item_key"], entries_E["timestamp_ms"], numbers_E, entries_E["value"], np.concatenate(seen)

    def _from_request(self, query: RecommendQuery, history: Sequence[PastEvent]) -> _Read:
        ordered = sorted(history, key=lambda event: event.timestamp_ms)
        keys_E = item_keys([event.item_id for event in ordered])
        seen_S = _NO_KEYS
        if query.exclude_seen:
            seen = query.seen_actions
            seen_S = keys_E[np.array([seen is None or event.action in seen for event in ordered], dtype=bool)]
        return (
            keys_E,
            np.array([event.timestamp_ms for event in ordered], dtype=np.int64),
            np.array([self._numbers[event.action] for event in ordered], dtype=np.int32),
            np.array([np.nan if e.value is None else e.value for e in ordered], dtype=np.float32),
            seen_S,
        )

    def _manifest_numbers(self, names: tuple[str, ...]) -> npt.NDArray[np.int32]:
        """The manifest's number of each stored action number; 0 where the model does not know the action."""
        if self._stored_actions[0] is not names:
            numbers = np.array([self._numbers.get(name, 0) for name in names], dtype=np.int32)
            self._stored_actions = (names, numbers)
        return self._stored_actions[1]


def item_keys(item_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Of external ids, in their order."""
    return np.array([item_key(item_id) for item_id in item_ids], dtype=np.uint64) if item_ids else _NO_KEYS
