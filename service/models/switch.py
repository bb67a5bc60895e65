"""Changes the model in service while requests are answered.

A new model is checked in a process of its own, loaded beside the one in service, and put in its place between two
requests. A request is answered by the model that it began with, which is let go when nobody uses it any more.

What is active is one state that all replicas read once a second (`service.models.state`): whoever activates changes it,
and every replica that holds the bundle follows.
"""

import asyncio
import logging
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Final

from service.background import running
from service.errors import ModelsMoved, ModelsUnavailable, NoEarlierModel, OneSlateError, UnknownModel
from service.metrics import Metrics
from service.models.model import Model
from service.models.registry import Registry
from service.models.state import ModelState, ModelStates
from service.version import package_version

_log = logging.getLogger(__name__)
_POLL_S: Final = 1.0
_RETRY_S: Final = 15.0
"""Until a model that is here and could not be served is tried again: to check it takes a process and seconds."""
_LETTING_GO_S: Final = 60.0
"""As long as the longest deadline."""
_NUM_TRIES: Final = 5

Open = Callable[[Path | None, bool], AbstractAsyncContextManager[Model]]
"""Opens the bundle of a folder; None: what the settings name. And whether another model answers requests meanwhile."""
Check = Callable[[Path], Awaitable[None]]
"""Raises BundleError, or another of ours, where the bundle of a folder cannot be served."""


class Models:
    """The models in service. `opened` makes one."""

    def __init__(
        self,
        first: Model,
        registry: Registry | None,
        states: ModelStates,
        open_one: Open,
        check: Check,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._states = states
        self._open = open_one
        self._check = check
        self._metrics = metrics
        self.active = first
        self.canary: Model | None = None
        self._canary_share = 0.0
        self._loaded: dict[str, tuple[Model, AsyncExitStack]] = {}
        self._wanted: Counter[str] = Counter()
        """Versions that somebody is about to put into service: they are not let go."""
        self._loading = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        self.missing: str | None = None
        """A version that should be in service here and cannot be loaded."""
        self._trouble_said = ""

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, registry: Registry | None, states: ModelStates, open_one: Open, check: Check, metrics: Metrics
    ) -> "AsyncIterator[Models]":
        """Opens the model that all replicas have in service, or else the one that the settings name; follows changes.

        Raises:
            BundleError, CatalogError, RunnerError: neither can be used.
        """
        async with AsyncExitStack() as stack:
            first = await _first(stack, registry, states, open_one)
            models = cls(first, registry, states, open_one, check, metrics)
            models._loaded[first.version] = (first, stack.pop_all())
        try:
            metrics.model_active(package_version(), first.manifest, first.runner.provider)
            del first  # this frame stays as long as the service runs
            await models._look()
            async with running(models._follow(), "models") if registry is not None else nullcontext():
                yield models
        finally:
            await models._close()

    def of_user(self, user_id: str) -> Model:
        """Which model answers a user: the same as long as the models in service do not change."""
        if self.canary is None:
            return self.active
        place = zlib.crc32(f"{self.canary.version}:{user_id}".encode()) / 2**32
        return self.canary if place < self._canary_share else self.active

    def loaded(self) -> list[Model]:
        """All that can answer now: the active one first."""
        return [self.active] if self.canary is None else [self.active, self.canary]

    async def state(self) -> ModelState:
        """As all replicas know it. ModelsUnavailable: it is not known now."""
        return await self._states.read() or ModelState(active=self.active.version)

    def registry(self) -> Registry | None:
        """What may be activated; None: only what the settings name."""
        return self._registry

    async def activate(self, version: str, share: float = 1.0) -> ModelState:
        """Puts a registered model into service, on this replica before it returns, on the others when they look.

        Args:
            version: Of a registered bundle.
            share: Of users who get it; below 1 the others stay with the active one.

        Raises:
            UnknownModel: it is not registered.
            BundleError, CatalogError, RunnerError: it cannot be trusted or loaded; the one in service stays.
            ModelsUnavailable, ModelsMoved: the state may not have been changed; to ask again does no harm.
        """
        if self._registry is None:
            raise UnknownModel("this service has no registry of models: set ONESLATE_MODELS_DIR")
        async with self._held(version):
            for _ in range(_NUM_TRIES):
                old = await self._states.read()
                before = old or ModelState(active=self.active.version)
                new = before.activated(version) if share >= 1 else before.tried(version, share)
                if await self._replace(old, new):
                    # A canary beside a model that another replica has just activated waits until that is here, too.
                    if new.active in self._loaded:
                        self._put(new)
                    return new
        raise ModelsMoved("others change the models all the time")

    async def roll_back(self, leaving: str | None = None) -> ModelState:
        """Takes back what some users try, or else goes back to the model before.

        Args:
            leaving: The model to leave: where it is not in service (any more) nothing is done, so that asking again
                does no harm.

        Raises:
            NoEarlierModel: there is nothing to go back to.
            Else as `activate`.
        """
        for _ in range(_NUM_TRIES):
            old = await self._states.read()
            before = old or ModelState(active=self.active.version)
            if leaving is not None and leaving not in before.versions:
                return before
            if leaving == before.active and before.canary is not None:
                before = ModelState(active=before.active, previous=before.previous)
            new = before.rolled_back()
            if new is None:
                raise NoEarlierModel("no model was in service before this one")
            # Only what was loaded for this very state is put into it.
            async with self._held(*new.versions):
                if await self._replace(old, new):
                    self._put(new)
                    return new
        raise ModelsMoved("others change the models all the time")

    async def _replace(self, old: ModelState | None, new: ModelState) -> bool:
        try:
            return await self._states.replace(old, new)
        except ModelsUnavailable:
            # The answer was lost, perhaps not the change.
            if await self._states.read() == new:
                return True
            raise

    async def _follow(self) -> None:
        pause_s = _POLL_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = _POLL_S if await self._look() else _RETRY_S

    async def _look(self) -> bool:
        """Does what the state says, as far as it can; False: a model is here that cannot be served."""
        if self._registry is None:
            return True
        try:
            if (state := await self._states.read()) is not None:
                await self._converge(state)
            self._trouble_said = ""
        except (UnknownModel, ModelsUnavailable) as error:
            self._say(str(error), error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look may go well
            self._say(str(error), error)
            return False
        return True

    def _say(self, trouble: str, error: Exception) -> None:
        """Once, as long as it is the same."""
        if trouble == self._trouble_said:
            return
        self._trouble_said = trouble
        self._metrics.model_errors.inc()
        is_ours = isinstance(error, OneSlateError)
        _log.warning("the models in service stay as they are: %s", trouble, exc_info=None if is_ours else error)

    async def _converge(self, state: ModelState) -> None:
        """Brings this replica to the state, the active model first. Raises where one cannot be loaded here."""
        canary = None if self.canary is None else self.canary.version
        here = (self.active.version, canary, self._canary_share)
        if here == (state.active, state.canary, state.canary_share):
            self.missing = None
            return
        if self.canary is not None and self.canary.version != state.canary:
            self._put(ModelState(active=self.active.version))  # what is over ends now, whatever is to be loaded first
        self.missing = state.active
        async with self._held(state.active):
            if not await self._is_still(state):
                return
            canary_is_loaded = state.canary is None or state.canary in self._loaded
            self._put(state if canary_is_loaded else ModelState(active=state.active))
            self.missing = None if canary_is_loaded else state.canary
            if state.canary is not None and not canary_is_loaded:
                async with self._held(state.canary):
                    if await self._is_still(state):
                        self._put(state)
                        self.missing = None

    async def _is_still(self, state: ModelState) -> bool:
        """To load takes a while: meanwhile it may have been taken back. What holds now is looked at soon."""
        return await self._states.read() == state

    @asynccontextmanager
    async def _held(self, *versions: str) -> AsyncIterator[None]:
        """Loads models beside what is in service, and keeps them at least as long as the block lasts."""
        self._wanted.update(versions)
        try:
            for version in versions:
                # What is loaded already does not wait until another one is checked and loaded, which takes a while.
                if version not in self._loaded:
                    async with self._loading:
                        await self._load(version)
            yield
        finally:
            self._wanted.subtract(versions)
            self._let_go()

    async def _load(self, version: str) -> None:
        if version in self._loaded:
            return
        if self._registry is None:
            raise UnknownModel(f"{version!r} is not the model that the settings name")
        path = (await asyncio.to_thread(self._registry.find, version)).path
        await self._check(path)
        async with AsyncExitStack() as stack:
            model = await stack.enter_async_context(self._open(path, True))
            self._loaded[model.version] = (model, stack.pop_all())

    def _put(self, state: ModelState) -> None:
        """Between two requests: whoever asks from now on is answered by these."""
        canary = self._loaded.get(state.canary or "")
        before = self.active.version
        self.active = self._loaded[state.active][0]
        self.canary = None if canary is None else canary[0]
        self._canary_share = state.canary_share if canary is not None else 0.0
        for model in self.loaded():
            model.is_observed = model is self.active
        if self.active.version != before:
            self._metrics.model_active(package_version(), self.active.manifest, self.active.runner.provider)
        tried = f", {state.canary} for {state.canary_share:.1%} of users" if self.canary else ""
        _log.info("in service: model %s%s", state.active, tried)

    def _let_go(self) -> None:
        """Of what is loaded and neither in service nor about to be, each when no request is answered by it any more."""
        needed = {model.version for model in self.loaded()} | {version for version, n in self._wanted.items() if n > 0}
        for version in [version for version in self._loaded if version not in needed]:
            model, stack = self._loaded.pop(version)
            task = asyncio.create_task(self._leave(model, stack), name=f"letting go of {version}")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    @staticmethod
    async def _leave(model: Model, stack: AsyncExitStack) -> None:
        if not await model.unused(_LETTING_GO_S):
            _log.warning("model %s is let go though requests are still answered by it", model.version)
        await stack.aclose()

    async def _close(self) -> None:
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for _, stack in self._loaded.values():
            await stack.aclose()


async def _first(stack: AsyncExitStack, registry: Registry | None, states: ModelStates, open_one: Open) -> Model:
    """The model that all replicas have in service; where nobody says which, or it cannot be opened, the settings'."""
    try:
        state = None if registry is None else await states.read()
        if registry is not None and state is not None:
            path = (await asyncio.to_thread(registry.find, state.active)).path
            return await stack.enter_async_context(open_one(path, False))
    except (OneSlateError, OSError) as error:
        _log.warning("starting with the bundle that the settings name: %s", error)
    return await stack.enter_async_context(open_one(None, False))
