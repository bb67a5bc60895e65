"""The action registry: a number per action name, append-only, shared by every replica of a deployment."""

from collections.abc import Iterable

from service.connection import RedisConnection, ScriptCall
from service.history.scripts import REGISTER_ACTIONS
from service.history.store import MAX_NUM_ACTIONS

_KEY = "{oneslate}:actions:1"


class ActionRegistry:
    """The local copy of a Redis list; a name's place in it is its number."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self.names: tuple[str, ...] = ()
        """Known names by number; replaced, never changed."""
        self._numbers: dict[str, int] = {}

    async def numbers(self, names: Iterable[str]) -> dict[str, int]:
        """A number for every known name; new names are appended while there is room, then left out."""
        new = [name for name in dict.fromkeys(names) if name not in self._numbers]
        if new and len(self.names) < MAX_NUM_ACTIONS:
            await self._register(new)
        return self._numbers

    async def refresh(self) -> None:
        """Read the registry again; what a crashed server lost of it is appended again, under its old numbers."""
        stored = _names(await self._connection.command("LRANGE", _KEY, 0, -1))
        if stored != self.names:
            if self.names[: len(stored)] == stored:
                await self._register(())
            else:
                self._adopt(stored)

    async def _register(self, new: Iterable[str]) -> None:
        # The known names go along, in order: a server that lost the newest of them gets them back before any other.
        call = ScriptCall(REGISTER_ACTIONS, [_KEY], [MAX_NUM_ACTIONS, *self.names, *new])
        [stored] = await self._connection.scripts([call], may_retry=True)
        self._adopt(_names(stored))

    def _adopt(self, stored: tuple[str, ...]) -> None:
        if stored != self.names:
            self.names = stored
            self._numbers = {name: number for number, name in enumerate(stored)}


def _names(reply: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(name.decode() for name in reply)
