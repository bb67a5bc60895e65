"""Why a slate came out as it did: the codes of its items, and what else was close."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """A code that could have been written instead."""

    code: int
    logprob: float
    item_id: str | None
    """The most popular item that may be shown below it; None: the catalog changed, and there is none any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedCode:
    """One code of an item's sid."""

    code: int
    logprob: float
    runner_ups: tuple[RunnerUp, ...]
    """The most likely first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedItem:
    """One place of a slate."""

    item_id: str
    levels: tuple[ExplainedCode, ...]
