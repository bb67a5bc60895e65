"""What a check says."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw."""

    name: str
    verdict: Verdict
    seen: str
    remedy: str = ""
    """What to do about it; empty when nothing."""
