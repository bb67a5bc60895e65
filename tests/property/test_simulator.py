"""The exact reward against the enumeration of everything that can happen, and the near-oracle against every slate.

Shapes: n users, W slates of each, K slate size, P items shown earlier in the same visit, I items.
"""

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.data.simulator import SimulatorConfig
from model_export.data.simulator.behaviour import LONG_SHARE, SHORT_SHARE, Behaviour
from model_export.data.simulator.feed import Feed
from model_export.data.simulator.items import Float, Int, make_items
from model_export.data.simulator.oracle import Problem, search_best
from model_export.data.simulator.rewards import expected_rewards
from model_export.data.simulator.users import Traits, make_traits

FAR = 1e-9


@dataclass(frozen=True, kw_only=True)
class World:
    """A catalog of twelve items in two topics and three series, and some users."""

    behaviour: Behaviour
    traits: Traits
    resting_nI: Float

    def rewards(self, item_nWK: Int, prefix_nP: Int | None = None) -> Float:
        num_users = len(item_nWK)
        prefix_nP = np.empty((num_users, 0), dtype=np.int64) if prefix_nP is None else prefix_nP
        resting_nWK = self.resting_nI[np.arange(num_users)[:, None, None], item_nWK]
        return expected_rewards(self.behaviour, self.traits, resting_nWK, item_nWK, prefix_nP)


def make_world(seed: int, *, num_users: int = 3, **settings: float) -> World:
    config = SimulatorConfig(num_items=12, **settings)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    items = make_items(config, rng)
    items = replace(items, topic_I=np.repeat([0, 0, 1], [5, 5, 2]), subject_I=np.repeat([0, 1, 8], [5, 5, 2]))
    resting_nI = 1.5 * rng.standard_normal((num_users, len(items)))
    return World(behaviour=Behaviour(config, items), traits=make_traits(config, num_users, rng), resting_nI=resting_nI)


def enumerated(world: World, user: int, slate: list[int], shown: list[int]) -> float:
    """The expected reward by walking through every course of events; written without the code under test."""
    if not slate:
        return 0.0
    config, items = world.behaviour.config, world.behaviour.items
    item, logit = slate[0], float(world.resting_nI[user, slate[0]])
    for age, earlier in enumerate(reversed(shown)):
        fatigue = 0.0
        if items.topic_I[earlier] == items.topic_I[item]:
            fatigue += config.fatigue_topic
        if items.subject_I[earlier] == items.subject_I[item]:
            fatigue += config.fatigue_subject
        if items.series_I[earlier] == items.series_I[item]:
            fatigue += config.fatigue_series
        if earlier == item:
            fatigue += config.fatigue_item
        felt = fatigue * world.traits.sensitivity_n[user] * items.satiety_T[items.topic_I[item]]
        if items.series_I[earlier] == items.series_I[item] and item == earlier + 1:
            felt -= config.sequel_appetite
        logit -= config.boredom * config.spacing**age * felt
    logit -= config.position_drop * len(shown)
    chance = world.behaviour.reaction(np.array(logit))
    click, long_view, like, hide = (float(p) for p in (chance.click, chance.long_view, chance.like, chance.hide))
    minutes = float(items.duration_s_I[item]) / 60
    long_min, short_min = minutes * sum(LONG_SHARE) / 2, minutes * sum(SHORT_SHARE) / 2
    long_reward = config.reward_click + config.reward_long_view + config.reward_watch_min * long_min
    skip_stay = float(world.traits.stay_skipped_n[user])
    courses = (
        (click * long_view * like, long_reward + config.reward_like, config.stay_liked),
        (click * long_view * (1 - like), long_reward, config.stay_liked),
        (click * (1 - long_view), config.reward_click + config.reward_watch_min * short_min, config.stay_liked),
        ((1 - click) * hide, config.reward_hide, config.stay_hidden),
        ((1 - click) * (1 - hide), 0.0, skip_stay),
    )
    assert abs(sum(course[0] for course in courses) - 1) < FAR
    rest = enumerated(world, user, slate[1:], [*shown, item])
    return sum(probability * (reward + stay * rest) for probability, reward, stay in courses)


slates = st.lists(st.integers(0, 11), min_size=1, max_size=4)


@given(seed=st.integers(0, 10_000), slate=slates, prefix=st.lists(st.integers(0, 11), max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_recursion_is_the_sum_over_all_courses_of_events(seed: int, slate: list[int], prefix: list[int]) -> None:
    world = make_world(seed)
    padded = np.tile(np.array([[-1, *prefix]]), (3, 1))
    found = world.rewards(np.tile(np.array([[slate]]), (3, 1, 1)), padded)[:, 0]
    for user in range(3):
        assert abs(found[user] - enumerated(world, user, slate, prefix)) < FAR


@given(seed=st.integers(0, 10_000), slate=slates, prefix=st.lists(st.integers(0, 11), max_size=3))
@settings(max_examples=30, deadline=None)
def test_the_feed_that_draws_the_log_sees_the_same_odds(seed: int, slate: list[int], prefix: list[int]) -> None:
    """With nobody ever leaving and a reward of one per click, the recursion must add up the feed's own chances."""
    stay = {"stay_liked": 1.0, "stay_skipped": 1.0, "stay_hidden": 1.0}
    only_clicks = {"reward_click": 1.0, "reward_long_view": 0.0, "reward_like": 0.0, "reward_hide": 0.0}
    world = make_world(seed, **stay, **only_clicks, reward_watch_min=0.0)
    feed = Feed(world.behaviour, world.traits, np.random.default_rng(0))
    feed.shown_nP = np.tile(np.array(prefix, dtype=np.int64), (3, 1))
    clicks_n = np.zeros(3)
    for item in slate:
        clicks_n += world.behaviour.reaction(feed.logit(np.full(3, item), world.resting_nI[:, item])).click
        feed.show(np.full(3, item), world.resting_nI[:, item])
    found_n = world.rewards(
        np.tile(np.array([[slate]]), (3, 1, 1)), np.tile(np.array([prefix], dtype=np.int64), (3, 1))
    )
    np.testing.assert_allclose(found_n[:, 0], clicks_n, atol=FAR)


@given(seed=st.integers(0, 10_000), slate=slates, empty=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_empty_places_at_the_end_and_neighbours_in_the_batch_change_nothing(
    seed: int, slate: list[int], empty: int
) -> None:
    world = make_world(seed)
    alone = world.rewards(np.tile(np.array([[slate]]), (3, 1, 1)))
    padded = np.full((3, 4, len(slate) + empty), -1)
    padded[:, :, : len(slate)] = np.random.default_rng(seed).integers(0, 12, (3, 4, len(slate)))
    padded[:, 2, : len(slate)] = slate
    np.testing.assert_allclose(world.rewards(padded)[:, 2], alone[:, 0], atol=FAR)


@given(seed=st.integers(0, 10_000), order=st.permutations(range(5)))
@settings(max_examples=30, deadline=None)
def test_without_boredom_a_slate_is_the_sum_of_its_items(seed: int, order: list[int]) -> None:
    """Where nobody leaves and positions are alike; with boredom the same slates are worth something else."""
    flat = {"stay_liked": 1.0, "stay_skipped": 1.0, "stay_hidden": 1.0, "position_drop": 0.0}
    slate = np.tile(np.array([[order]]), (3, 1, 1))
    for boredom in (0.0, 1.0):
        world = make_world(seed, boredom=boredom, **flat)
        alone = world.rewards(slate.transpose(0, 2, 1)).sum(axis=1)
        is_sum = np.abs(world.rewards(slate)[:, 0] - alone) < FAR
        assert is_sum.all() if boredom == 0 else not is_sum.any()


@given(seed=st.integers(0, 10_000), at=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_without_boredom_an_item_is_worth_the_same_after_any_others(seed: int, at: int) -> None:
    """Given that the user is still there: what the items before it are changes only the chance of that."""
    world = make_world(seed, boredom=0.0, stay_liked=0.9, stay_skipped=0.9, stay_hidden=0.9)
    world = replace(world, traits=replace(world.traits, stay_skipped_n=np.full(3, 0.9)))
    rng = np.random.default_rng(seed)
    first, second = rng.permutation(12)[:4], rng.permutation(12)[:4]
    gain = []
    for before in (first, second):
        slate = np.tile(np.array([[before]]), (3, 1, 1))
        slate[:, :, at] = 11
        without = slate.copy()
        without[:, :, at:] = -1
        gain.append(world.rewards(slate[:, :, : at + 1])[:, 0] - world.rewards(without)[:, 0])
    np.testing.assert_allclose(gain[0], gain[1], atol=FAR)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_resemblance_tires_and_the_next_part_is_welcome(seed: int) -> None:
    world = make_world(seed, sensitivity_spread=0.0)
    feed = Feed(world.behaviour, world.traits, np.random.default_rng(0))
    feed.shown_nP = np.full((3, 1), 1)
    repeat, same_series, same_topic, other, next_part = (
        feed.logit(np.full(3, item), np.zeros(3)) for item in (1, 3, 7, 11, 2)
    )
    assert (repeat < same_series).all()
    assert (same_series < same_topic).all()
    assert (same_topic < other).all()
    assert (next_part > other).all()


@given(logits=st.lists(st.floats(-8, 8), min_size=2, max_size=2, unique=True))
@settings(max_examples=50, deadline=None)
def test_better_odds_are_never_worth_less(logits: list[float]) -> None:
    behaviour = make_world(0).behaviour
    low, high = (
        behaviour.value(behaviour.reaction(np.array([logit])), np.array([3])).item() for logit in sorted(logits)
    )
    assert low <= high


def oracle_and_best(seed: int, k: int, prefix: list[int]) -> tuple[Float, Float]:
    """What the oracle's slates are worth, and the best of all slates, for three users; all that it gives is legal."""
    world = make_world(seed)
    rng = np.random.default_rng(seed)
    allowed = rng.random((3, 12)) < 0.7
    allowed[:, :4] = True
    prefix_nP = np.tile(np.array([prefix], dtype=np.int64), (3, 1))
    problem = Problem(
        behaviour=world.behaviour,
        traits=world.traits,
        resting_bI=world.resting_nI,
        allowed_bI=allowed,
        prefix_bP=prefix_nP,
    )
    found = search_best(problem, k, 8)
    for user in range(3):
        assert allowed[user, found[user]].all()
        assert len(set(found[user]) - {-1}) == k
    every = np.array(list(permutations(range(12), k)))
    worth = world.rewards(np.tile(every[None], (3, 1, 1)), prefix_nP)
    is_allowed = allowed[np.arange(3)[:, None, None], every[None]].all(axis=2)
    return world.rewards(found[:, None], prefix_nP)[:, 0], np.where(is_allowed, worth, -np.inf).max(axis=1)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 4), prefix=st.lists(st.integers(0, 11), max_size=2))
@settings(max_examples=15, deadline=None)
def test_the_oracle_comes_near_the_best_of_all_slates(seed: int, k: int, prefix: list[int]) -> None:
    reached, best = oracle_and_best(seed, k, prefix)
    assert (reached <= best + FAR).all()
    assert (reached >= best - 0.15 * np.abs(best) - FAR).all()


def test_the_oracle_is_within_a_percent_of_the_best_on_average() -> None:
    reached, best = np.array([oracle_and_best(seed, 3, [4] * (seed % 2)) for seed in range(40)]).transpose(1, 0, 2)
    assert reached.sum() > 0.99 * best.sum()
    assert (reached > best - FAR).mean() > 0.8


def test_the_oracle_gives_as_many_items_as_there_are() -> None:
    world = make_world(1)
    allowed = np.zeros((3, 12), dtype=np.bool_)
    allowed[1, [2, 7]], allowed[2, :] = True, True
    nothing = np.empty((3, 0), dtype=np.int64)
    problem = Problem(
        behaviour=world.behaviour,
        traits=world.traits,
        resting_bI=world.resting_nI,
        allowed_bI=allowed,
        prefix_bP=nothing,
    )
    found = search_best(problem, 4, 5)
    assert found[0].tolist() == [-1, -1, -1, -1]
    assert sorted(found[1].tolist()) == [-1, -1, 2, 7]
    assert found[1, 2:].tolist() == [-1, -1]
    assert len(set(found[2])) == 4
    assert (found[2] >= 0).all()
