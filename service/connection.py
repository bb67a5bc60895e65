"""One way to talk to Redis, whatever stands behind the URL: tight timeouts, at most one retry, one kind of error."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.utils import HIREDIS_AVAILABLE

from service.errors import HistoryUnavailable, OneSlateError

_CLUSTER_SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_SCHEMES = ("redis", "rediss", "unix", *_CLUSTER_SCHEMES)
_SPARE_CONNECTIONS = 16
_CLOSED = "the handler is closed"
"""What uvloop says, as a RuntimeError, of a connection that the server has closed before we write."""
_TIMEOUTS = (exceptions.TimeoutError, TimeoutError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How long Redis may take."""

    connect_timeout_ms: int = 50
    """For a connection to stand."""
    read_timeout_ms: int = 50
    """For one reply, and for a free connection."""
    num_retries: int = 1
    """0 or 1: once more after a lost connection. A timeout is never retried: the caller's time is spent."""
    max_connections: int = 64
    """Connections at once; in a cluster, per node."""

    def __post_init__(self) -> None:
        if self.connect_timeout_ms < 1 or self.read_timeout_ms < 1:
            raise ValueError("Redis timeouts must be at least 1 ms")
        if self.num_retries not in (0, 1):
            raise ValueError(f"num_retries must be 0 or 1, not {self.num_retries}")
        if self.max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {self.max_connections}")


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script's text and the SHA-1 that EVALSHA knows it by."""

    text: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", sha1(self.text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One script with its keys, which share a hash tag, and its arguments."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[str | bytes | int]


class RedisConnection:
    """Runs commands and scripts; every failure is an `unavailable` with its cause."""

    def __init__(
        self,
        url: str,
        limits: ConnectionLimits,
        *,
        purpose: str = "history store",
        unavailable: type[OneSlateError] = HistoryUnavailable,
    ) -> None:
        self.unavailable = unavailable
        self._purpose = purpose
        if not HIREDIS_AVAILABLE:
            # Without it replies are parsed in Python: ten times the p99 of a read.
            raise unavailable(f"the {purpose} needs the package hiredis (3.2 or later): pip install hiredis")
        scheme = urlsplit(url).scheme
        if scheme not in _SCHEMES:
            raise ValueError(f"a Redis URL starts with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
        self._limits = limits
        self.is_cluster = scheme in _CLUSTER_SCHEMES
        self.target = _without_secrets(url)
        self._client: Any = _client(url, limits, cluster=self.is_cluster)
        self._free_slots = asyncio.Semaphore(limits.max_connections)
        self._is_closed = False
        # redis-py's cluster client sleeps and asks around inside one call; a single server's calls end by themselves.
        budget_ms = 2 * (limits.connect_timeout_ms + limits.read_timeout_ms)
        self._budget_s = budget_ms / 1000 if self.is_cluster else None

    async def command(self, *arguments: str | bytes | int) -> Any:
        """One command, one round trip."""
        return await self._attempt(lambda: self._client.execute_command(*arguments), may_retry=True)

    async def scripts(self, calls: Sequence[ScriptCall], *, may_retry: bool) -> list[Any]:
        """All scripts in one round trip (in a cluster one per node, at once); their replies, in order.

        A second round trip only where a server does not know a script yet. `may_retry`: running a script twice does
        no harm.
        """
        commands = [_script_command("EVALSHA", call) for call in calls]
        replies: list[Any] = await self._attempt(lambda: self._pipeline(commands), may_retry=may_retry)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]
        if unknown:
            commands = [_script_command("EVAL", calls[i]) for i in unknown]
            repeated = await self._attempt(lambda: self._pipeline(commands), may_retry=may_retry)
            for i, reply in zip(unknown, repeated, strict=True):
                replies[i] = reply
        return replies

    async def configuration(self, pattern: str) -> list[dict[str, str]]:
        """CONFIG GET of every primary."""
        replies = await self._attempt(lambda: self._configurations(pattern), may_retry=True)
        return [{_text(name): _text(value) for name, value in reply.items()} for reply in replies]

    async def each_primary(self, *arguments: str | bytes | int) -> dict[str, Any]:
        """One command to every primary; its replies, by the server's name."""
        replies: dict[str, Any] = await self._attempt(lambda: self._of_primaries(arguments), may_retry=True)
        return replies

    async def close(self) -> None:
        """Close every connection, once the calls under way have ended; further calls are refused."""
        if self._is_closed:
            return
        self._is_closed = True
        # A call that lost its connection to the closing would open another, and nobody would close that one.
        for _ in range(self._limits.max_connections):
            await self._free_slots.acquire()
        if self.is_cluster:
            # aclose() alone does nothing after an error.
            await self._client.nodes_manager.aclose()
            await self._client.nodes_manager.aclose("startup_nodes")
        await self._client.aclose()

    async def _configurations(self, pattern: str) -> list[Any]:
        if not self.is_cluster:
            return [await self._client.config_get(pattern)]
        await self._client.initialize()
        nodes = self._client.get_primaries()
        return await _all(self._client.config_get(pattern, target_nodes=node) for node in nodes)

    async def _of_primaries(self, arguments: Sequence[str | bytes | int]) -> dict[str, Any]:
        if not self.is_cluster:
            return {self.target: await self._client.execute_command(*arguments)}
        await self._client.initialize()
        nodes = self._client.get_primaries()
        replies = await _all(self._client.execute_command(*arguments, target_nodes=node) for node in nodes)
        return {node.name: reply for node, reply in zip(nodes, replies, strict=True)}

    async def _pipeline(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        groups = await self._by_node(commands) if self.is_cluster else [range(len(commands))]
        if len(groups) == 1:
            replies = await self._run(commands)
        else:
            replies = [None] * len(commands)
            answers = await _all(self._run([commands[i] for i in group]) for group in groups)
            for group, answer in zip(groups, answers, strict=True):
                for i, reply in zip(group, answer, strict=True):
                    replies[i] = reply
        for reply in replies:
            if isinstance(reply, Exception) and not isinstance(reply, exceptions.NoScriptError):
                raise reply
        return replies

    async def _by_node(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Sequence[int]]:
        """Which script commands go to one node, by their first key.

        redis-py would divide them too, but when one node fails it leaves its tasks on the others running.
        """
        await self._client.initialize()
        groups: dict[str, list[int]] = {}
        for i, (_, _, _, key, *_) in enumerate(commands):
            groups.setdefault(self._client.get_node_from_key(key).name, []).append(i)
        return list(groups.values())

    async def _run(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        pipeline = self._client.pipeline() if self.is_cluster else self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def _attempt(self, call: Callable[[], Awaitable[Any]], *, may_retry: bool) -> Any:
        num_left = self._limits.num_retries if may_retry else 0
        while True:
            if self._is_closed:
                raise self.unavailable(f"the connection to the {self._purpose} at {self.target} is closed")
            try:
                async with asyncio.timeout(self._budget_s):
                    return await self._in_turn(call)
            except _TIMEOUTS as error:
                raise self._unavailable(error) from error
            except (exceptions.ConnectionError, exceptions.ClusterError, OSError) as error:
                if num_left == 0:
                    raise self._unavailable(error) from error
                num_left -= 1
                await self._learn_topology()
            except (exceptions.RedisError, exceptions.RedisClusterException) as error:
                raise self._unavailable(error) from error

    async def _in_turn(self, call: Callable[[], Awaitable[Any]]) -> Any:
        # A burst waits here for a connection: redis-py's own pool would refuse at once, or lock on every command.
        if self._free_slots.locked():
            async with asyncio.timeout(self._limits.read_timeout_ms / 1000):
                await self._free_slots.acquire()
        else:
            await self._free_slots.acquire()
        task = asyncio.current_task()
        assert task is not None
        num_cancels = task.cancelling()
        try:
            return await call()
        except RuntimeError as error:
            if _CLOSED not in str(error):
                raise
            raise exceptions.ConnectionError("the connection was closed by the other side") from error
        finally:
            self._free_slots.release()
            if task.cancelling() > num_cancels:
                # Python 3.11's wait_for, by which redis-py sends, may lose it: a task would never end.
                raise asyncio.CancelledError

    async def _learn_topology(self) -> None:
        """After a lost node: ask the others who serves its slots now."""
        if not self.is_cluster:
            return
        try:
            async with asyncio.timeout(self._budget_s):
                await self._in_turn(self._client.nodes_manager.initialize)
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> OneSlateError:
        said = str(error) or type(error).__name__
        return self.unavailable(f"{self._purpose} at {self.target} did not answer: {said}")


def _client(url: str, limits: ConnectionLimits, *, cluster: bool) -> Redis | RedisCluster:
    options: dict[str, Any] = {
        "socket_connect_timeout": limits.connect_timeout_ms / 1000,
        "socket_timeout": limits.read_timeout_ms / 1000,
        # Retries are ours: redis-py would retry the connection and the command, each, and timeouts too.
        "retry": Retry(NoBackoff(), 0),
        # Protocol 2 and no driver name: a new connection is usable without a round trip of its own.
        "protocol": 2,
        "driver_info": None,
        "max_connections": limits.max_connections + _SPARE_CONNECTIONS,
    }
    if cluster:
        parts = urlsplit(url)
        return RedisCluster.from_url(parts._replace(scheme=_CLUSTER_SCHEMES[parts.scheme]).geturl(), **options)
    return Redis.from_url(url, **options)


async def _all(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """All results, in order. Waits for every call even when one fails: none goes on behind the caller's back."""
    ends = await asyncio.gather(*calls, return_exceptions=True)
    failures = [end for end in ends if isinstance(end, BaseException)]
    if failures:
        # A timeout before others: then nothing is tried again.
        raise next((failure for failure in failures if isinstance(failure, _TIMEOUTS)), failures[0])
    return ends


def _script_command(command: str, call: ScriptCall) -> list[str | bytes | int]:
    text = call.script.digest if command == "EVALSHA" else call.script.text
    return [command, text, len(call.keys), *call.keys, *call.arguments]


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
