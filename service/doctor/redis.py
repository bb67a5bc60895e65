"""What a Redis that is there can do, and what it says of itself; of a cluster every primary is judged.

Whatever an ACL or a managed Redis does not let us ask is a warning that says so: the service does without.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from service.connection import RedisConnection, Script, ScriptCall
from service.doctor.finding import Finding
from service.errors import HistoryUnavailable
from service.eventlog.rows import NUM_BUCKETS, bucket_tag
from service.history.codec import FORMAT_VERSION
from service.randomness import random_hex
from service.settings import Settings

_NUM_READS: Final = 50
_OLDEST_REDIS: Final = (6, 2)
_MOST_READ_MS: Final = 5.0
_MOST_SKEW_S: Final = 1.0
_MUCH_MEMORY: Final = 0.8
_NODE = Mapping[str, str]
_WRITE: Final = Script("""
-- Whether a history may be written. Nobody sees the key, for a script is served alone.
-- It expires where it may not be deleted.
redis.call('SET', KEYS[1], '', 'PX', 1000)
return redis.call('DEL', KEYS[1])
""")
"""A write and no `ACL DRYRUN`: that came with Redis 7, and says nothing of replicas, full memory or a failing disk."""
_RULES: Final = (
    "ACL SETUSER: ~{b*}* ~{catalog}* ~{oneslate}* ~{models}* +@read +@write +@scripting +time, of a cluster +cluster"
)
_OTHER_TAGS: Final = ("{catalog}", "{oneslate}", "{models}")
_REFUSALS: Final = {
    "READONLY": "it is a replica: ONESLATE_HISTORY__URL must name the primary",
    "READ ONLY REPLICA": "it is a replica: ONESLATE_HISTORY__URL must name the primary",
    "MAXMEMORY": "it is full: raise its maxmemory",
    "MISCONF": "it could not write to its disk: its log says why",
    "DISK": "it could not write to its disk: its log says why",
    "REPLICAS": "too few of its replicas follow: bring them back, or lower min-replicas-to-write",
    "PERMISSION": _RULES,
    "EXECUTING THE SCRIPT": _RULES,  # Redis 6.2
}
"""What Redis says (redis-py takes some of the codes away), and what to do about it."""


async def look_at(connection: RedisConnection, settings: Settings) -> list[Finding]:
    """All findings of a Redis.

    Raises:
        HistoryUnavailable: it does not answer, or does not let us read.
    """
    latency = await _latency(connection, settings)
    infos = await _infos(connection)
    configurations = await _configurations(connection)
    findings = _versions(connection, infos)
    findings.append(latency)
    findings.append(await _writes(connection))
    nodes = {name: (infos.get(name, {}), configurations.get(name, {})) for name in {**infos, **configurations}}
    for check in (_role, _persistence, _disk, _memory):
        findings += _of_each(nodes, check)
    findings.append(await _clock(connection))
    return findings


def _of_each(
    nodes: Mapping[str, tuple[_NODE, _NODE]], check: Callable[[_NODE, _NODE], Finding | None]
) -> Iterator[Finding]:
    """Each that is not as it should be, by name, else the first."""
    found = [(name, finding) for name, of in nodes.items() if (finding := check(*of)) is not None]
    bad = [(name, finding) for name, finding in found if finding.verdict != "ok"]
    if not bad:
        yield from (finding for _, finding in found[:1])
    for name, finding in bad:
        yield finding if len(nodes) == 1 else replace(finding, seen=f"{name}: {finding.seen}")


async def _latency(connection: RedisConnection, settings: Settings) -> Finding:
    """Of what every slate waits for."""
    reads_ms = []
    for _ in range(_NUM_READS):
        began_s = time.perf_counter()
        await connection.command("MGET", _key())
        reads_ms.append((time.perf_counter() - began_s) * 1000)
    p50_ms, worst_ms = statistics.median(reads_ms), max(reads_ms)
    seen = f"a round trip takes {p50_ms:.2f} ms (median of {_NUM_READS}), {worst_ms:.2f} at most"
    if p50_ms > _MOST_READ_MS or worst_ms > settings.history.read_timeout_ms:
        remedy = "put it nearer, or raise ONESLATE_HISTORY__READ_TIMEOUT_MS (slates wait for it)"
        return Finding("redis latency", "warning", seen, remedy)
    return Finding("redis latency", "ok", seen)


def _key(bucket: int = 0) -> str:
    """Of the history of a user whom nobody is."""
    return f"{bucket_tag(bucket)}h{FORMAT_VERSION}:{random_hex(16)}"


async def _infos(connection: RedisConnection) -> dict[str, dict[str, str]]:
    """By primary; empty where it may not be asked."""
    replies = await _allowed(connection.each_primary("INFO"))
    return {name: _info(reply) for name, reply in (replies or {}).items()}


async def _configurations(connection: RedisConnection) -> dict[str, dict[str, str]]:
    """By primary; empty where it may not be asked, as with most who run it for others."""
    found: dict[str, dict[str, str]] = {}
    for pattern in ("append*", "save"):
        for name, reply in ((await _allowed(connection.each_primary("CONFIG", "GET", pattern))) or {}).items():
            found.setdefault(name, {}).update(_pairs(reply))
    return found


async def _allowed(asking: Any) -> Any:
    """The reply; None where this user may not ask."""
    try:
        return await asking
    except HistoryUnavailable as error:
        if not _is_forbidden(error):
            raise
        return None


def _is_forbidden(error: HistoryUnavailable) -> bool:
    said = str(error).lower()
    return "permission" in said or "unknown command" in said


def _versions(connection: RedisConnection, infos: Mapping[str, _NODE]) -> list[Finding]:
    if not infos:
        seen = f"{connection.target} answers, and INFO may not be asked: version, role and memory are not known"
        return [Finding("redis", "warning", seen, "ACL SETUSER <user> +info, for this command alone")]
    numbers = {info.get("redis_version", "0") for info in infos.values()}
    where = f"{connection.target}: Redis {', '.join(sorted(numbers))}"
    if any(tuple(int(part) for part in number.split(".")[:2]) < _OLDEST_REDIS for number in numbers):
        return [Finding("redis", "wrong", where, "6.2 or later is needed")]
    return [Finding("redis", "ok", where)]


async def _writes(connection: RedisConnection) -> Finding:
    buckets = range(NUM_BUCKETS) if connection.is_cluster else [0]  # all of them: some are on every primary
    keys = [*map(_key, buckets), *(f"{tag}:{random_hex(16)}" for tag in _OTHER_TAGS)]
    try:
        await connection.scripts([ScriptCall(_WRITE, [key], []) for key in keys], may_retry=True)
    except HistoryUnavailable as error:
        said = str(error)
        remedies = [remedy for code, remedy in _REFUSALS.items() if code in said.upper()]
        return Finding("redis writes", "wrong", f"refused: {said}", remedies[0] if remedies else "its log may say why")
    return Finding("redis writes", "ok", "a key was written and deleted again")


def _role(info: _NODE, _: _NODE) -> Finding | None:
    if info.get("role") != "slave":
        return None
    primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
    return Finding("redis role", "wrong", f"a replica of {primary}", "ONESLATE_HISTORY__URL must name the primary")


def _persistence(info: _NODE, configured: _NODE) -> Finding | None:
    keeps = info.get("aof_enabled", {"yes": "1", "no": "0"}.get(configured.get("appendonly", "")))
    if keeps is None:
        return None
    name = "redis persistence"
    if keeps != "1":
        seen = "no append-only file: a restart forgets every history"
        return Finding(name, "warning", seen, "CONFIG SET appendonly yes, and in redis.conf")
    if configured.get("appendfsync") == "always":
        return Finding(name, "ok", "append-only, fsync always: an acknowledged event survives a power cut")
    fsync = configured.get("appendfsync", "unknown")
    return Finding(name, "ok", f"append-only, fsync {fsync}: a power cut may cost the last second")


def _disk(info: _NODE, configured: _NODE) -> Finding | None:
    """Redis refuses every write after one of these."""
    remedy = "free its disk and look into its log: until it can write there, every event is refused"
    if (status := info.get("aof_last_write_status", "ok")) != "ok":
        seen = f"the append-only file could not be written (aof_last_write_status {status})"
        return Finding("redis disk", "wrong", seen, remedy)
    saves = configured.get("save")
    if info.get("rdb_last_bgsave_status", "ok") != "ok" and saves != "":
        seen = "the last snapshot could not be written (rdb_last_bgsave_status err)"
        if saves is None:
            return Finding("redis disk", "warning", f"{seen}; whether snapshots are on may not be asked", remedy)
        return Finding("redis disk", "wrong", seen, f'{remedy}; or without snapshots: CONFIG SET save ""')
    return None


def _memory(info: _NODE, _: _NODE) -> Finding | None:
    if "used_memory" not in info:
        return None
    name, policy = "redis memory", info.get("maxmemory_policy", "noeviction")
    used, most = int(info["used_memory"]), int(info.get("maxmemory", "0"))
    limit = info.get("maxmemory_human", most) if most else "as much as there is"
    seen = f"{info.get('used_memory_human', used)} used of {limit}, {policy}"
    if policy != "noeviction":
        remedy = (
            "CONFIG SET maxmemory-policy noeviction: or Redis drops histories, and the catalog's log, when it is full"
        )
        return Finding(name, "wrong", seen, remedy)
    if used >= most > 0:
        return Finding(
            name, "wrong", f"{seen}: it is full, and every event is refused", "CONFIG SET maxmemory, to more"
        )
    if used >= _MUCH_MEMORY * most > 0:
        return Finding(name, "warning", f"{seen}: when it is full, events are refused", "CONFIG SET maxmemory, to more")
    return Finding(name, "ok", seen)


async def _clock(connection: RedisConnection) -> Finding:
    if (replies := await _allowed(connection.each_primary("TIME"))) is None:
        return Finding("clock", "warning", "TIME of Redis may not be asked", "ACL SETUSER <user> +time")
    now_s = time.time()
    skew_s = max(abs(now_s - int(seconds) - int(microseconds) / 1e6) for seconds, microseconds in replies.values())
    seen = f"this machine and Redis differ by {skew_s:.2f} s"
    if skew_s > _MOST_SKEW_S:
        return Finding("clock", "warning", seen, "run NTP on both")
    return Finding("clock", "ok", seen)


def _info(reply: Any) -> dict[str, str]:
    """Of one server, whatever the client made of its lines."""
    if isinstance(reply, bytes | str):
        lines = (reply.decode() if isinstance(reply, bytes) else reply).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)
    if len(reply) == 1 and all(isinstance(value, dict) for value in reply.values()):
        [reply] = reply.values()
    return {str(name): str(value) for name, value in reply.items()}


def _pairs(reply: Any) -> dict[str, str]:
    """Of CONFIG GET, whatever the client made of it."""
    if not isinstance(reply, dict):
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    return {_text(name): _text(value) for name, value in reply.items()}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
