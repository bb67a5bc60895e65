"""The truth behind a simulated log: exact rewards, states of users through time, and the slates to compare with."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.errors import DataError
from model_export.data.examples import Examples
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData
from model_export.data.simulator import SimulatorConfig, TrueScorer, Truth, simulate
from model_export.data.simulator.behaviour import Pressure
from model_export.data.simulator.feed import Feed
from model_export.data.simulator.items import Float, Int
from model_export.data.simulator.scoring import State

CONFIG = SimulatorConfig(num_items=600, num_users=400)


@dataclasses.dataclass(frozen=True)
class World:
    folder: Path
    data: PreparedData
    truth: Truth
    scorer: TrueScorer

    def examples(self, count: int) -> Examples:
        test = self.data.examples("test")
        return test[np.sort(np.random.default_rng(0).choice(len(test), min(count, len(test)), replace=False))]


def make_world(config: SimulatorConfig, folder: Path) -> World:
    summary = simulate(config, folder)
    data = prepare(PrepareConfig(), summary.log, folder / "prepared")
    truth = Truth.load(summary.truth)
    return World(folder=folder, data=data, truth=truth, scorer=truth.scorer(data))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(CONFIG, tmp_path_factory.mktemp("on"))


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(CONFIG.without_boredom(), tmp_path_factory.mktemp("off"))


def state_of(world: World, examples: Examples) -> State:
    """The states that the scorer uses, found here from the log's own ids and times."""
    ids = world.data.user_id_E.gather(examples.target_start).to_list()
    row_of = {user_id: row for row, user_id in enumerate(world.truth.user_ids)}
    now_ms = world.data.timestamp_ms_E[examples.target_start] - round(1000 * CONFIG.start_timestamp_s)
    return world.truth.state(np.array([row_of[one] for one in ids]), now_ms)


def played(world: World, state: State, user: int, slate: Int, num_times: int) -> Float:
    """The rewards of so many visits of one user to one slate, drawn with the code that draws the log."""
    rng, behaviour = np.random.default_rng(0), world.truth.behaviour
    feed = Feed(behaviour, state.traits.take(np.full(num_times, user)), rng)
    prefix = state.prefix_BP[user]
    feed.shown_nP = np.tile(prefix[prefix >= 0], (num_times, 1))
    resting = state.resting(behaviour, np.tile(slate, (len(state.now_ms_B), 1)))[user]
    reward_n, there_n = np.zeros(num_times), np.arange(num_times)
    for item, resting_logit in zip(slate, resting, strict=True):
        response = feed.show(np.full(len(there_n), item), np.full(len(there_n), resting_logit))
        reward_n[there_n] += response.reward(behaviour)
        feed.keep(response.stays_n)
        there_n = there_n[response.stays_n]
    return reward_n


def test_the_score_is_what_happens_on_average(world: World) -> None:
    """Twelve users and slates, 40,000 visits each: every score within 4.5 standard errors of the mean reward."""
    examples = world.examples(200)
    state = state_of(world, examples)
    prefixed = np.flatnonzero((state.prefix_BP >= 0).any(axis=1))
    chosen = examples[np.concatenate([prefixed[:4], np.arange(8)])]
    slates = np.concatenate([world.scorer.oracle(chosen[:8], 5), world.scorer.item_wise(chosen[8:], 5)])
    scores = world.scorer.score(chosen, slates[:, None, :].astype(np.int32))
    assert scores.dtype == np.float32
    state = state_of(world, chosen)
    for user, slate in enumerate(slates):
        rewards = played(world, state, user, slate, 40_000)
        error = rewards.std() / np.sqrt(len(rewards))
        assert abs(rewards.mean() - scores[user, 0]) < 4.5 * error


def test_states_read_back_from_the_truth_explain_the_log(world: World) -> None:
    """Clicks of the log, in ten groups by the chance that the recovered states give them: as many as expected."""
    truth, behaviour = world.truth, world.truth.behaviour
    visits, exposures = truth.visits, truth.exposures
    num_visits, width = len(visits.user_V), CONFIG.max_shown
    state = truth.state(visits.user_V, visits.start_ms_V)
    assert (state.prefix_BP < 0).all()
    first = np.searchsorted(exposures.visit_R, np.arange(num_visits))
    place = np.arange(len(exposures.visit_R)) - first[exposures.visit_R]
    item_VP = np.full((num_visits, width), -1)
    item_VP[exposures.visit_R, place] = exposures.item_R
    resting_VP = state.resting(behaviour, item_VP)
    chance_VP = np.empty(item_VP.shape)
    for position in range(width):
        each = behaviour.pressure(item_VP[:, :position], item_VP[:, position, None])
        nearness = np.power(CONFIG.spacing, np.arange(position - 1, -1, -1))
        pressure = Pressure(fatigue=(each.fatigue * nearness).sum(1), appetite=(each.appetite * nearness).sum(1))
        logit = resting_VP[:, position] - behaviour.strain(state.traits, item_VP[:, position], pressure)
        chance_VP[:, position] = behaviour.reaction(logit - CONFIG.position_drop * position).click
    chance = chance_VP[exposures.visit_R, place]
    for group in np.array_split(np.argsort(chance), 10):
        error = np.sqrt((chance[group] * (1 - chance[group])).sum()) / len(group)
        assert abs(exposures.is_consumed_R[group].mean() - chance[group].mean()) < 4 * error


def test_a_moment_inside_a_visit_remembers_what_was_shown_until_the_last_click(world: World) -> None:
    truth = world.truth
    exposures = truth.exposures
    visit = int(np.argmax(np.bincount(exposures.visit_R, weights=exposures.is_consumed_R)))
    mine = np.flatnonzero(exposures.visit_R == visit)
    clicked = mine[exposures.is_consumed_R[mine]]
    now = exposures.time_ms_R[clicked[2]]
    user = truth.visits.user_V[[visit]]
    state = truth.state(user, np.array([now]))
    assert state.prefix_BP.tolist() == [exposures.item_R[mine[0] : clicked[1] + 1].tolist()]
    assert state.memory_ms_B[0] == truth.visits.start_ms_V[visit]
    after = truth.state(user, exposures.time_ms_R[mine[-1:]] + 1)
    assert after.prefix_BP.shape == (1, 0)
    item = exposures.item_R[clicked[:1]][None]
    pressures = [one.memory.pressure(np.zeros(1, int), one.memory_ms_B, item).fatigue for one in (state, after)]
    assert pressures[1] > pressures[0] + CONFIG.carry * CONFIG.fatigue_item * 0.9


def test_before_the_first_visit_there_is_nothing_to_remember(world: World) -> None:
    state = world.truth.state(np.array([0, 1]), np.array([-5, 0]))
    item = np.arange(20)[None].repeat(2, axis=0)
    assert (state.memory.pressure(np.arange(2), state.memory_ms_B, item).fatigue == 0).all()
    assert state.prefix_BP.shape == (2, 0)


def test_memory_fades(world: World) -> None:
    user = world.truth.visits.user_V[-1:]
    end_ms = world.truth.exposures.time_ms_R[-1:] + 1
    item = world.truth.exposures.item_R[-200:][None]
    found = []
    for days in (0, 3, 6):
        state = world.truth.state(user, end_ms + round(days * 86_400_000))
        found.append(state.memory.pressure(np.zeros(1, int), state.memory_ms_B, item).fatigue.sum())
    assert found[0] > 0
    np.testing.assert_allclose(found[1:], found[0] * np.exp([-1, -2]), rtol=1e-9)


def test_an_item_not_yet_published_is_an_empty_place(world: World) -> None:
    train = world.data.examples("train")
    early = train[np.argsort(world.data.timestamp_ms_E[train.target_start])[:20]]
    late = np.argmax(world.truth.items.published_ms_I)
    ids = world.data.items["item_id"].to_list()
    slates = world.scorer.oracle(early, 3)
    with_late = slates.copy()
    with_late[:, 1] = ids.index(world.truth.items.item_ids[late])
    without = slates.copy()
    without[:, 1] = -1
    scores = world.scorer.score(early, np.stack([with_late, without, slates], axis=1))
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])
    assert (scores[:, 2] > scores[:, 1]).all()
    assert not (slates == ids.index(world.truth.items.item_ids[late])).any()


def test_slates_hold_what_may_be_shown(world: World) -> None:
    examples = world.examples(60)
    assert world.data.meta["repeat_policy"] == "exclude"
    is_off = np.zeros(world.data.num_items, dtype=np.bool_)
    is_off[::3] = True
    data = replace(world.data, items=world.data.items.with_columns(available=pl.Series(~is_off)))
    scorer = world.truth.scorer(data)
    for slates in (scorer.oracle(examples, 5), scorer.item_wise(examples, 5)):
        assert not is_off[slates].any()
        for slate, start, end in zip(slates, examples.history_start, examples.history_end, strict=True):
            assert len(set(slate)) == 5
            assert not set(slate) & set(data.item_E[start:end])
    np.testing.assert_array_equal(world.truth.oracle(data, examples, 5), scorer.oracle(examples, 5))
    allowing = replace(data, meta=data.meta | {"repeat_policy": "allow"})
    better = world.truth.scorer(allowing).oracle(examples, 5)
    assert any(
        set(slate) & set(data.item_E[start:end])
        for slate, start, end in zip(better, examples.history_start, examples.history_end, strict=True)
    )


def gap(world: World) -> float:
    """What the near-oracle's slates are worth more than the best ranking of single items, as a share."""
    examples = world.examples(150)
    oracle, item_wise = world.scorer.oracle(examples, 5), world.scorer.item_wise(examples, 5)
    scores = world.scorer.score(examples, np.stack([oracle, item_wise], axis=1))
    return float(scores[:, 0].mean() / scores[:, 1].mean() - 1)


def test_slates_matter_with_boredom_and_hardly_without(world: World, control: World) -> None:
    assert gap(world) > 0.15
    assert 0 <= gap(control) < 0.02


def test_the_order_and_the_company_of_the_catalog_do_not_matter(world: World) -> None:
    """Examples scored alone or with others, and items in another order: the same rewards."""
    examples = world.examples(30)
    slates = np.random.default_rng(0).integers(0, world.data.num_items, (len(examples), 7, 5))
    scores = world.scorer.score(examples, slates)
    single = np.concatenate([world.scorer.score(examples[i : i + 1], slates[i : i + 1]) for i in range(len(examples))])
    np.testing.assert_allclose(single, scores, atol=1e-6)
    order = np.random.default_rng(1).permutation(world.data.num_items)
    moved = replace(world.data, items=world.data.items[order], item_E=np.argsort(order)[world.data.item_E])
    np.testing.assert_allclose(world.truth.scorer(moved).score(examples, np.argsort(order)[slates]), scores, atol=1e-6)
    one = world.scorer.single_rewards(examples)
    first = np.take_along_axis(one, slates[:, :, 0], axis=1)
    np.testing.assert_allclose(world.scorer.score(examples, slates[:, :, :1]), first, atol=1e-6)


def test_the_truth_reads_back_as_it_was(world: World, tmp_path: Path) -> None:
    world.truth.save(tmp_path)
    again = Truth.load(tmp_path)
    assert again.config == CONFIG
    assert again.log_sha256 == world.truth.log_sha256
    for part in ("items", "traits", "visits", "exposures"):
        for field in dataclasses.fields(getattr(again, part)):
            mine, other = (getattr(getattr(one, part), field.name) for one in (again, world.truth))
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other)


def test_what_is_no_truth_or_another_worlds_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the truth of a simulated log"):
        Truth.load(tmp_path)
    world.truth.save(tmp_path)
    meta = (tmp_path / "truth.json").read_text()
    (tmp_path / "truth.json").write_text(meta.replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(DataError, match="another version"):
        Truth.load(tmp_path)
    items = world.data.items.with_columns(pl.concat_str(pl.lit("x"), "item_id").alias("item_id"))
    with pytest.raises(ValueError, match="item_id 'xvideo-00001' is not of the simulated world"):
        world.truth.scorer(replace(world.data, items=items))
