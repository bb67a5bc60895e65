"""The state of the models in Redis."""

from typing import Any, Final

from pydantic import ValidationError

from service.connection import RedisConnection, Script, ScriptCall
from service.errors import ModelsUnavailable
from service.models.state import ModelState

_KEY: Final = "{models}:state1"
_REPLACE: Final = Script("""
-- Replaces KEYS 1 by ARGV 2 if it is ARGV 1 ('': not there).
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
""")


class RedisModelStates:
    """Beside histories and the catalog's log."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    async def read(self) -> ModelState | None:
        """See ModelStates."""
        text: Any = await self._connection.command("GET", _KEY)
        if text is None:
            return None
        try:
            return ModelState.model_validate_json(text)
        except ValidationError as error:
            raise ModelsUnavailable(f"{_KEY} at {self._connection.target} holds no state of models: {error}") from error

    async def replace(self, old: ModelState | None, new: ModelState) -> bool:
        """See ModelStates. Tried once: what a lost answer did is seen at the next reading."""
        arguments = ["" if old is None else old.model_dump_json(), new.model_dump_json()]
        [replaced] = await self._connection.scripts([ScriptCall(_REPLACE, [_KEY], arguments)], may_retry=False)
        return bool(replaced)

    async def close(self) -> None:
        """See ModelStates."""
        await self._connection.close()
