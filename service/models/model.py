"""One model in service: everything that belongs to one version, and who still uses it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from service.bundle import Manifest
from service.catalog import CatalogSnapshot, LiveCatalog
from service.health import SlateHealth
from service.inference.batcher import Batcher
from service.inference.runner import Runner
from service.items import CatalogFollower, ItemWriter
from service.recommend import Recommender


@dataclass(slots=True, kw_only=True, eq=False)
class Model:
    """A runner, its catalog, what changes its items, its queue, and the use case on top."""

    runner: Runner
    live: LiveCatalog
    items: ItemWriter
    follower: CatalogFollower
    batcher: Batcher
    recommender: Recommender
    health: SlateHealth
    _num_users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def manifest(self) -> Manifest:
        """Of its bundle."""
        return self.runner.manifest

    @property
    def version(self) -> str:
        """Its name."""
        return self.runner.manifest.model_version

    def catalog(self) -> CatalogSnapshot:
        """The snapshot in service now."""
        return self.live.snapshot

    @property
    def is_observed(self) -> bool:
        """Whether gauges tell of its catalog: of several models, the active one's."""
        return self.follower.is_observed

    @is_observed.setter
    def is_observed(self, is_observed: bool) -> None:
        self.follower.is_observed = is_observed

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a request is answered by it, it is not let go."""
        self._num_users += 1
        try:
            yield
        finally:
            self._num_users -= 1
            if self._num_users == 0:
                self._unused.set()

    async def unused(self, timeout_s: float) -> bool:
        """Waits until no request is answered by it any more; False: some still were at the end of the time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._num_users:
                    self._unused.clear()
                    await self._unused.wait()
        except TimeoutError:
            return False
        return True
