"""Changes the model in service while requests are answered.

A new model is checked in a process of its own, loaded beside the one in service, and put in its place between two
requests. A request is answered by the model that it began with, which is let go when nobody uses it any more.

What is active is one state that all replicas read once a second (`service.models.state`): whoever activates changes it,
and every replica that holds the bundle follows.
"""

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from service.errors import BundleError, ModelsMoved, ModelsUnavailable, NoEarlierModel, OneSlateError, UnknownModel
from service.metrics import Metrics
from service.models.model import Model
from service.models.registry import Registry
from service.models.state import ModelState, ModelStates
from service.version import package_version

_log = logging.getLogger(__name__)
_POLL_S: Final = 1.0
_RETRY_S: Final = 15.0
_LETTING_GO_S: Final = 60.0
"""As long as the longest deadline."""
_NUM_TRIES: Final = 5

Open = Callable[[Path | None], AbstractAsyncContextManager[Model]]
"""Opens the bundle of a folder; None: what the settings name."""
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
        self._turn = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        self.missing: str | None = None
        """A version that should be in service here and cannot be loaded."""

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, registry: Registry | None, states: ModelStates, open_one: Open, check: Check, metrics: Metrics
    ) -> "AsyncIterator[Models]":
        """Opens the model that all replicas have in service, or else the one that the settings name; follows changes.

        Raises:
            BundleError, CatalogError, RunnerError: neither can be used.
        """
        path = None if registry is None else await _active_path(registry, states)
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(open_one(path))
            models = cls(first, registry, states, open_one, check, metrics)
            models._loaded[first.version] = (first, stack.pop_all())
        try:
            metrics.model_active(package_version(), first.version, first.runner.provider)
            await models._look()
            follower = None if registry is None else asyncio.create_task(models._follow(), name="models")
            try:
                yield models
            finally:
                if follower is not None:
                    follower.cancel()
                    await asyncio.gather(follower, return_exceptions=True)
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
            ModelsUnavailable, ModelsMoved: the state could not be changed, and is as it was; ask again.
        """
        if self._registry is None:
            raise UnknownModel("this service has no registry of models: set ONESLATE_MODELS_DIR")
        async with self._turn:
            await self._load(version)
            try:
                return await self._change(
                    lambda state: state.activated(version) if share >= 1 else state.tried(version, share)
                )
            finally:
                self._let_go()

    async def roll_back(self) -> ModelState:
        """Takes back what some users try, or else goes back to the model before.

        Raises:
            NoEarlierModel: there is nothing to go back to.
            Else as `activate`.
        """
        async with self._turn:
            earlier = (await self.state()).rolled_back()
            if earlier is None:
                raise NoEarlierModel("no model was in service before this one")
            for version in earlier.versions:
                await self._load(version)
            try:
                return await self._change(lambda state: state.rolled_back() or state)
            finally:
                self._let_go()

    async def _change(self, change: Callable[[ModelState], ModelState]) -> ModelState:
        for _ in range(_NUM_TRIES):
            old = await self._states.read()
            new = change(old or ModelState(active=self.active.version))
            if await self._states.replace(old, new):
                if all(version in self._loaded for version in new.versions):
                    self._put(new)
                return new
        raise ModelsMoved("others change the models all the time")

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
            async with self._turn:
                state = await self._states.read()
                if state is not None:
                    await self._converge(state)
        except (UnknownModel, ModelsUnavailable) as error:
            self._trouble(error)
        except OneSlateError as error:
            self._trouble(error)
            return False  # to check it takes a process and seconds
        return True

    def _trouble(self, error: OneSlateError) -> None:
        self._metrics.model_errors.inc()
        _log.warning("the models in service stay as they are: %s", error)

    async def _converge(self, state: ModelState) -> None:
        """Brings this replica to the state. Raises where one of its models cannot be loaded here."""
        here = ModelState(
            active=self.active.version,
            previous=state.previous,
            canary=None if self.canary is None else self.canary.version,
            canary_share=self._canary_share,
        )
        if here == state:
            self.missing = None
            return
        try:
            for version in state.versions:
                self.missing = version
                await self._load(version)
            self.missing = None
            self._put(state)
        finally:
            self._let_go()

    async def _load(self, version: str) -> None:
        """Beside what is in service."""
        if version in self._loaded:
            return
        if self._registry is None:
            raise UnknownModel(f"{version!r} is not the model that the settings name")
        path = (await asyncio.to_thread(self._registry.find, version)).path
        await self._check(path)
        async with AsyncExitStack() as stack:
            model = await stack.enter_async_context(self._open(path))
            self._loaded[model.version] = (model, stack.pop_all())

    def _put(self, state: ModelState) -> None:
        """Between two requests: whoever asks from now on is answered by these."""
        before = self.active.version
        self.active = self._loaded[state.active][0]
        self.canary = None if state.canary is None else self._loaded[state.canary][0]
        self._canary_share = state.canary_share
        if self.active.version != before:
            self._metrics.model_active(package_version(), self.active.version, self.active.runner.provider)
        tried = f", {state.canary} for {state.canary_share:.1%} of users" if state.canary else ""
        _log.info("in service: model %s%s", state.active, tried)

    def _let_go(self) -> None:
        """Of what is loaded and not in service, each when no request is answered by it any more."""
        in_service = {model.version for model in self.loaded()}
        for version in [version for version in self._loaded if version not in in_service]:
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


async def _active_path(registry: Registry, states: ModelStates) -> Path | None:
    """Of the bundle that all replicas have in service; None: nobody says, or it is not here."""
    try:
        state = await states.read()
        return None if state is None else (await asyncio.to_thread(registry.find, state.active)).path
    except (UnknownModel, BundleError, ModelsUnavailable) as error:
        _log.warning("starting with the bundle that the settings name: %s", error)
        return None
