"""Everything about the simulated service that may be chosen: its size, its users, what shows items, what counts."""

from dataclasses import dataclass, replace
from math import isfinite

EVENTS_PER_USER = 37.0
"""About how many events a user leaves under the other defaults (32 of 1,000 items, 38 of 3,000)."""
MAX_LIFETIMES = 500.0
"""Memory is kept as exp(time / memory_days); beyond this many lifetimes a log would overflow it."""
_AT_LEAST_ZERO = (
    "boredom", "fatigue_topic", "fatigue_subject", "fatigue_series", "fatigue_item", "sequel_appetite", "carry",
    "position_drop", "taste", "style_spread", "quality_spread", "sensitivity_spread", "drift_spread",
    "swaps_per_day", "policy_noise",
)  # fmt: skip
_SHARES = (
    "late_share",
    "spacing",
    "stay_liked",
    "stay_skipped",
    "stay_hidden",
    "subject_share",
    "group_share",
    "spread_share",
)
_POLICY = ("popular_share", "relevant_share", "sequel_share")


@dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    """The defaults give the demo's log of about 60,000 events; `judging` gives the one that models are judged on.

    Strengths are in logits: what they add to or take from the log-odds of a click.
    """

    num_items: int = 1000
    num_users: int = 1850
    num_days: int = 30
    mean_visits: float = 10.0
    """Visits of a user in the whole time; users differ widely."""
    max_shown: int = 15
    """Items that a visit shows at most; most users leave earlier."""
    late_share: float = 0.25
    """Share of the series that are published while the log runs; the others stand there from its start."""
    start_timestamp_s: float = 1_767_225_600.0
    """Unix time at which the log begins: 2026-01-01."""
    seed: int = 0

    bias: float = -1.7
    """Log-odds of a click on an average item far from the user's interests."""
    taste: float = 3.8
    """What an item on the subject of the user's strongest interest gains."""
    group_share: float = 0.1
    """Part of `taste` that any item of the interest's group gains."""
    subject_share: float = 0.3
    """Part of `taste` that only items on the very subject gain; what is left is for the topic."""
    style_spread: float = 0.4
    """Standard deviation of a user's liking for each of the ways in which series treat a subject."""
    quality_spread: float = 0.45
    """Standard deviation of the items' quality, the same for all users."""
    drift_spread: float = 0.6
    """Standard deviation of the logarithm of an interest's strength around its mean."""
    drift_days: float = 10.0
    """Time in which an interest's strength forgets where it was."""
    swaps_per_day: float = 0.03
    """How often a user's weakest interest gives way to a new one."""

    boredom: float = 1.0
    """Scales everything that earlier items do to later ones; 0 is the negative control, where slates are sums."""
    fatigue_topic: float = 1.2
    """What an item loses for an item of its topic just before it."""
    fatigue_subject: float = 0.4
    """Lost besides, where that item has the same subject."""
    fatigue_series: float = 1.4
    """Lost besides, where it is of the same series."""
    fatigue_item: float = 3.0
    """Lost besides, where it is the same item."""
    sequel_appetite: float = 3.4
    """What an item gains for the part of its series just before it: a second part is welcome, a third is not."""
    sensitivity_spread: float = 0.5
    """Standard deviation of the logarithm of the users' (and, half as much, the topics') factor on fatigue."""
    spacing: float = 0.7
    """Factor on an item's effect for each further item shown between, within a visit."""
    carry: float = 0.4
    """Factor on the effect of an item that was consumed in an earlier visit, before it decays."""
    memory_days: float = 3.0
    """Time in which that effect falls to 1/e."""

    position_drop: float = 0.04
    """What each position of a visit takes."""
    stay_liked: float = 0.98
    """Chance to go on after an item that was clicked."""
    stay_skipped: float = 0.93
    """The same after an item that was passed over; users differ by a few hundredths."""
    stay_hidden: float = 0.5
    """The same after an item that was hidden."""

    popular_share: float = 0.15
    """Share of positions that the logging policy fills by popularity."""
    relevant_share: float = 0.75
    """Share that it fills by a noisy guess of what fits the user."""
    sequel_share: float = 0.01
    """Share that it fills with the next part of what was consumed last; what is left is uniform exploration."""
    spread_share: float = 0.9
    """How often a guess leaves out the interests that just had their turn in the visit, as feeds do."""
    policy_noise: float = 1.0
    """Scale of the Gumbel noise on the policy's guess."""

    reward_click: float = 0.2
    """The reward of a slate is the expected sum of these over its items: a click,"""
    reward_long_view: float = 0.4
    """a click that becomes a long view,"""
    reward_like: float = 1.0
    """a long view that ends with a like,"""
    reward_hide: float = -1.0
    """an item hidden,"""
    reward_watch_min: float = 0.1
    """and each minute watched."""

    def __post_init__(self) -> None:
        for name in ("num_items", "num_users", "num_days", "max_shown", "mean_visits"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("drift_days", "memory_days"):
            self._check(name, getattr(self, name) > 0, "positive")
        for name in _AT_LEAST_ZERO:
            self._check(name, isfinite(getattr(self, name)) and getattr(self, name) >= 0, "a number of at least 0")
        for name in (*_SHARES, *_POLICY):
            self._check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._check(
            "memory_days", self.num_days / self.memory_days <= MAX_LIFETIMES, f"at least num_days / {MAX_LIFETIMES:g}"
        )
        if self.group_share + self.subject_share > 1:
            raise ValueError("group_share and subject_share must add up to at most 1")
        if sum(getattr(self, name) for name in _POLICY) > 1:
            raise ValueError(f"{', '.join(_POLICY)} must add up to at most 1")

    def _check(self, name: str, is_fine: bool, rule: str) -> None:
        if not is_fine:
            raise ValueError(f"{name} must be {rule}, not {getattr(self, name)}")

    @classmethod
    def judging(cls, *, seed: int = 0) -> "SimulatorConfig":
        """The size on which models are judged: 3,000 items, 8,000 users, about 300,000 events."""
        return cls(num_items=3000, num_users=8000, seed=seed)

    def for_events(self, num_events: int) -> "SimulatorConfig":
        """The same service with as many users as leave about `num_events` events."""
        if num_events < 1:
            raise ValueError(f"num_events must be at least 1, not {num_events}")
        per_user = EVENTS_PER_USER * self.mean_visits / SimulatorConfig.mean_visits
        return replace(self, num_users=max(1, round(num_events / per_user)))

    def without_boredom(self) -> "SimulatorConfig":
        """The negative control: nothing that was shown changes what a later item is worth."""
        return replace(self, boredom=0.0)
