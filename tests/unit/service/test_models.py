"""Switching models: who answers whom, what is let go when, and what a model that cannot be loaded changes: nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.bundle import Manifest
from service.errors import BundleError, ModelsMoved, ModelsUnavailable, NoEarlierModel, UnknownModel
from service.inference.fake_runner import fake_manifest
from service.metrics import Metrics
from service.models import MemoryModelStates, Model, Models, ModelState, Registered, Registry


def manifest(version: str) -> Manifest:
    return fake_manifest().model_copy(update={"model_version": version})


class Shelf:
    """A registry of the given versions; what is opened, checked and closed is written down."""

    def __init__(self, *versions: str) -> None:
        self.versions = list(versions)
        self.course: list[str] = []
        self.refused: set[str] = set()
        self.open_fails: set[str] = set()

    def find(self, version: str) -> Registered:
        if version not in self.versions:
            raise UnknownModel(version)
        return Registered(Path(version), manifest(version))

    async def check(self, path: Path) -> None:
        self.course.append(f"check {path}")
        if str(path) in self.refused:
            raise BundleError(f"{path}: a flipped byte")

    @asynccontextmanager
    async def open(self, path: Path | None, beside_another: bool) -> AsyncIterator[Model]:
        version = "first" if path is None else str(path)
        # What is opened first has the cores to itself, wherever it comes from.
        kinds = [step.split()[0] for step in self.course]
        assert beside_another == (kinds.count("open") > kinds.count("close"))
        if version in self.open_fails:
            raise BundleError(f"{version}: does not load")
        self.course.append(f"open {version}")
        runner = SimpleNamespace(manifest=manifest(version), provider="fake")
        parts: dict[str, Any] = dict.fromkeys(("live", "items", "batcher", "recommender", "health"))
        parts["follower"] = SimpleNamespace(is_observed=True)
        yield Model(runner=cast(Any, runner), **parts)
        self.course.append(f"close {version}")

    def models(self, states: MemoryModelStates | None = None) -> Any:
        return Models.opened(cast(Registry, self), states or MemoryModelStates(), self.open, self.check, Metrics())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_model_takes_the_place_of_another_that_is_then_let_go() -> None:
    shelf = Shelf("first", "second")
    async with shelf.models() as models:
        assert models.active.version == "first"
        state = await models.activate("second")
        assert state == ModelState(active="second", previous=("first",))
        assert models.active.version == "second"
        await settle()
        assert shelf.course == ["open first", "check second", "open second", "close first"]
    assert shelf.course[-1] == "close second"


async def test_who_is_being_answered_keeps_their_model() -> None:
    shelf = Shelf("first", "second")
    async with shelf.models() as models:
        model = models.of_user("ann")
        with model.in_use():
            await models.activate("second")
            await settle()
            assert "close first" not in shelf.course
        await settle()
        assert "close first" in shelf.course


async def test_a_rollback_goes_back_step_by_step_until_there_is_none() -> None:
    shelf = Shelf("first", "second", "third")
    async with shelf.models() as models:
        for version in ("second", "third", "third"):
            await models.activate(version)
        assert (await models.state()).previous == ("second", "first")
        assert (await models.roll_back()).active == "second"
        assert (await models.roll_back()) == ModelState(active="first")
        assert models.active.version == "first"
        with pytest.raises(NoEarlierModel):
            await models.roll_back()


async def test_a_canary_has_its_share_of_users_and_always_the_same() -> None:
    shelf = Shelf("first", "second")
    async with shelf.models() as models:
        await models.activate("second", share=0.2)
        assert models.active.version == "first"
        assert [model.version for model in models.loaded()] == ["first", "second"]
        users = [f"user-{number}" for number in range(5000)]
        chosen = [models.of_user(user).version for user in users]
        assert 0.17 < chosen.count("second") / len(users) < 0.23
        assert chosen == [models.of_user(user).version for user in users]
        await models.activate("second", share=0.5)
        more = [models.of_user(user).version for user in users]
        assert all(b == "second" for a, b in zip(chosen, more, strict=True) if a == "second"), "who has it keeps it"
        state = await models.roll_back()
        assert state == ModelState(active="first")
        await settle()
        assert shelf.course[-1] == "close second"
        await models.activate("second", share=0.2)
        assert (await models.activate("second")).canary is None
        assert models.active.version == "second"


@pytest.mark.parametrize("how", ["refused", "open_fails"])
async def test_a_model_that_cannot_be_served_changes_nothing(how: str) -> None:
    shelf = Shelf("first", "bad")
    getattr(shelf, how).add("bad")
    async with shelf.models() as models:
        for share in (1.0, 0.1):
            with pytest.raises(BundleError, match="bad"):
                await models.activate("bad", share)
        assert await models.state() == ModelState(active="first")
        assert [model.version for model in models.loaded()] == ["first"]
        assert "close first" not in shelf.course


async def test_an_unknown_model_and_a_service_without_registry_say_so() -> None:
    shelf = Shelf("first")
    async with shelf.models() as models:
        with pytest.raises(UnknownModel):
            await models.activate("second")
    async with Models.opened(None, MemoryModelStates(), shelf.open, shelf.check, Metrics()) as models:
        with pytest.raises(UnknownModel, match="ONESLATE_MODELS_DIR"):
            await models.activate("first")


async def test_a_replica_follows_what_another_one_activates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.models.switch._POLL_S", 0.01)
    states = MemoryModelStates()
    here, there = Shelf("first", "second"), Shelf("first", "second")
    async with here.models(states) as mine, there.models(states) as theirs:
        await mine.activate("second")
        await until(lambda: theirs.active.version == "second")
        await theirs.activate("first", share=0.5)
        await until(lambda: mine.canary is not None and mine.canary.version == "first")
        await mine.roll_back()
        await until(lambda: theirs.canary is None)


async def test_a_replica_that_lacks_the_model_stays_and_says_so_and_takes_it_when_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.models.switch._POLL_S", 0.01)
    states = MemoryModelStates()
    here, there = Shelf("first", "second"), Shelf("first")
    async with here.models(states) as mine, there.models(states) as theirs:
        await mine.activate("second")
        await until(lambda: theirs.missing == "second")
        assert theirs.active.version == "first"
        there.versions.append("second")
        await until(lambda: theirs.active.version == "second")
        await until(lambda: theirs.missing is None)


async def test_a_replica_that_starts_begins_with_what_is_active() -> None:
    states, shelf = MemoryModelStates(), Shelf("first", "second")
    async with shelf.models(states) as models:
        await models.activate("second")
    again = Shelf("first", "second")
    async with again.models(states) as models:
        assert models.active.version == "second"
        assert again.course == ["open second"]


async def test_replicas_that_change_the_state_at_once_lose_no_change() -> None:
    states = MemoryModelStates()
    shelves = [Shelf("first", *(f"m{number}" for number in range(8))) for _ in range(8)]

    async def activate(shelf: Shelf, version: str) -> None:
        async with shelf.models(states) as models:
            await models.activate(version)

    await asyncio.gather(*(activate(shelf, f"m{number}") for number, shelf in enumerate(shelves)))
    state = await states.read()
    assert state is not None
    assert {state.active, *state.previous} == {"first", *(f"m{number}" for number in range(8))}


async def test_a_state_that_others_change_all_the_time_is_given_up_on() -> None:
    class Busy(MemoryModelStates):
        async def replace(self, old: ModelState | None, new: ModelState) -> bool:
            return False

    shelf = Shelf("first", "second")
    async with shelf.models(Busy()) as models:
        with pytest.raises(ModelsMoved):
            await models.activate("second")
        assert models.active.version == "first"
        await settle()
        assert shelf.course[-1] == "close second"


async def test_a_model_that_was_taken_back_while_it_was_loaded_is_not_put_into_service() -> None:
    states, shelf = MemoryModelStates(), Shelf("first", "second")
    async with shelf.models(states) as models:
        await states.replace(None, ModelState(active="second", previous=("first",)))

        async def check(path: Path) -> None:
            shelf.course.append(f"check {path}")
            await states.replace(await states.read(), ModelState(active="first"))

        models._check = check
        assert await models._look()
        assert models.active.version == "first"
        await settle()
        assert await models._look()
        assert models.missing is None
        assert shelf.course == ["open first", "check second", "open second", "close second"]


async def test_a_canary_that_is_not_here_holds_up_no_active_model(monkeypatch: pytest.MonkeyPatch) -> None:
    states, shelf = MemoryModelStates(), Shelf("first", "second")
    async with shelf.models(states) as models:
        state = ModelState(active="second", previous=("first",), canary="third", canary_share=0.5)
        await states.replace(None, state)
        for _ in range(3):
            assert await models._look()
        assert (models.active.version, models.canary, models.missing) == ("second", None, "third")
        await settle()
        assert shelf.course.count("check second") == shelf.course.count("open second") == 1
        shelf.versions.append("third")
        assert await models._look()
        assert (models.canary.version, models.missing) == ("third", None)


async def test_a_canary_beside_a_model_that_is_not_here_yet_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    states = MemoryModelStates()
    here, there = Shelf("first", "second", "third"), Shelf("first", "second", "third")
    async with here.models(states) as mine, there.models(states) as theirs:
        await mine.activate("second")
        state = await theirs.activate("third", share=0.5)
        assert (state.active, state.canary) == ("second", "third")
        assert theirs.active.version == "first"
        assert await theirs._look()
        assert [model.version for model in theirs.loaded()] == ["second", "third"]


async def test_a_lost_answer_is_not_taken_for_a_lost_change() -> None:
    class Lossy(MemoryModelStates):
        async def replace(self, old: ModelState | None, new: ModelState) -> bool:
            await super().replace(old, new)
            raise ModelsUnavailable("no answer")

    shelf = Shelf("first", "second")
    async with shelf.models(Lossy()) as models:
        assert (await models.activate("second")).active == "second"
        assert (await models.roll_back("second")) == ModelState(active="first")
        assert (await models.roll_back("second")) == ModelState(active="first"), "asked again"


async def test_a_rollback_goes_only_to_what_was_loaded_for_it() -> None:
    states = MemoryModelStates()
    here, there = Shelf("first", "second", "third"), Shelf("first", "second", "third")
    async with here.models(states) as mine, there.models(states) as theirs:
        await mine.activate("second")
        await mine.activate("third")
        here.refused.add("first")
        there.refused.add("first")
        outcomes = await asyncio.gather(mine.roll_back("third"), theirs.roll_back("third"), return_exceptions=True)
        assert all(isinstance(outcome, ModelState) for outcome in outcomes)
        state = await states.read()
        assert state is not None
        assert state.active == "second"


async def test_what_is_over_ends_while_another_model_is_checked() -> None:
    states = MemoryModelStates()
    shelf = Shelf("first", "second", "third")
    async with shelf.models(states) as models:
        await models.activate("second", share=0.5)
        gate, checks = asyncio.Event(), asyncio.Event()

        async def check(path: Path) -> None:
            checks.set()
            await gate.wait()

        models._check = check
        slow = asyncio.create_task(models.activate("third"))
        await checks.wait()
        # By another replica, seen here; and by this one.
        await states.replace(await states.read(), ModelState(active="first"))
        assert await asyncio.wait_for(models._look(), 5)
        assert models.canary is None
        await states.replace(ModelState(active="first"), ModelState(active="first", canary="second", canary_share=0.5))
        gate.set()
        assert (await slow).active == "third"


async def test_a_canary_that_is_over_ends_before_what_replaces_it_is_loaded() -> None:
    states = MemoryModelStates()
    shelf = Shelf("first", "second", "third")
    async with shelf.models(states) as models:
        await models.activate("second", share=0.5)

        async def check(path: Path) -> None:
            assert (models.active.version, models.canary) == ("first", None)

        models._check = check
        await states.replace(await states.read(), ModelState(active="third", previous=("first",)))
        assert await models._look()
        assert models.active.version == "third"


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("can't start new thread")])
async def test_nothing_ends_the_following(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("service.models.switch._POLL_S", 0.005)
    monkeypatch.setattr("service.models.switch._RETRY_S", 0.01)
    states, shelf = MemoryModelStates(), Shelf("first", "second")
    async with shelf.models(states) as models:
        find = shelf.find

        def broken(version: str) -> Registered:
            raise error

        shelf.find = broken  # type: ignore[method-assign]
        await states.replace(None, ModelState(active="second"))
        await asyncio.sleep(0.05)
        assert models.active.version == "first"
        shelf.find = find  # type: ignore[method-assign]
        await until(lambda: models.active.version == "second")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - of somebody else's polling
            await asyncio.sleep(0.005)
