"""Which model is in service, as all replicas know it."""

from typing import Annotated, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

MAX_PREVIOUS: Final = 20


class ModelState(BaseModel):
    """The model in service, those before it, and one that some users try."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    active: str
    previous: tuple[str, ...] = ()
    """Newest first; what a rollback goes back to."""
    canary: str | None = None
    canary_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of users."""

    def activated(self, version: str) -> "ModelState":
        """With this model for all."""
        if version == self.active:
            return ModelState(active=version, previous=self.previous)
        return ModelState(active=version, previous=(self.active, *self.previous)[:MAX_PREVIOUS])

    def tried(self, version: str, share: float) -> "ModelState":
        """With this model for some users; the active one is for all already."""
        if version == self.active:
            return ModelState(active=self.active, previous=self.previous)
        return ModelState(active=self.active, previous=self.previous, canary=version, canary_share=share)

    def rolled_back(self) -> "ModelState | None":
        """Without what some users try, or else with the model before; None: there is none."""
        if self.canary is not None:
            return ModelState(active=self.active, previous=self.previous)
        if not self.previous:
            return None
        return ModelState(active=self.previous[0], previous=self.previous[1:])

    @property
    def versions(self) -> tuple[str, ...]:
        """That must be loaded."""
        return (self.active,) if self.canary is None else (self.active, self.canary)


class ModelStates(Protocol):
    """Where the state is kept. ModelsUnavailable from any method: it did not answer."""

    async def read(self) -> ModelState | None:
        """None: nobody has activated anything yet."""
        ...

    async def replace(self, old: ModelState | None, new: ModelState) -> bool:
        """Whether the state was `old` and is `new` now."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


class MemoryModelStates:
    """Of one process."""

    def __init__(self) -> None:
        self._state: ModelState | None = None

    async def read(self) -> ModelState | None:
        """See ModelStates."""
        return self._state

    async def replace(self, old: ModelState | None, new: ModelState) -> bool:
        """See ModelStates."""
        if self._state != old:
            return False
        self._state = new
        return True

    async def close(self) -> None:
        """See ModelStates."""
