"""The catalog's log in Redis (6.2 and later), shared by all replicas.

All keys share one hash tag, so that one script sees them on one node of a cluster:

    {catalog}:log               stream: an entry per submitted batch; fields 1, 2, ...: item id, model, sid, members
    {catalog}:undo              stream: of each entry, at its position, fields 1, 2, ...: item id, and of the members
                                that were set what they were (null: unknown; `new` before it: the item was)
    {catalog}:entries           stream: of each entry, at its position, how many changes it has
    {catalog}:items             hash: `<item id>\\n<member>` -> JSON, the sum of all changes
    {catalog}:sid_of:<model>    hash: item id -> sid
    {catalog}:item_at:<model>   hash: sid -> item id

The members of an item are fields of their own, so that a change of one is one HSET.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from service.catalog.change import MEMBERS, Before, ItemChange, LoggedChange, Sid
from service.catalog.log import START, LogEntry, LogState, LogTail, Submitted, Undo, sum_up, undo_everything
from service.connection import ConnectionLimits, RedisConnection, Script, ScriptCall
from service.errors import CatalogError, CatalogMoved, CatalogUnavailable

_TAG: Final = "{catalog}"
_SCAN_COUNT: Final = 2000
_MAX_ENTRIES_AT_ONCE: Final = 200
_NUM_SCANS: Final = 3

SUBMIT: Final = Script("""
-- Appends changes of items as one entry of the log; a change whose sid is another item's is left out.
-- KEYS  1 log  2 items  3 sid of each item  4 item at each sid  5 undo  6 entries
-- ARGV  1 entries to keep  2 model version  3 '' or the position that the log must end at
--       4 number of member names  5.. the names
--       then per change: item id, sid ('' for none), number of members, and name and JSON of each
-- Returns the position, '' where nothing was written, and per change: '' stored, '!' its sid is taken, else the
-- item's sid; 'moved' alone: the log ends elsewhere.
if ARGV[3] ~= '' then
  local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if (newest[1] and newest[1][1] or '0-0') ~= ARGV[3] then return {'moved'} end
end
local num_names = tonumber(ARGV[4])
local names = {}
for i = 1, num_names do names[i] = ARGV[4 + i] end

local function object_of(members)
  local parts = {}
  for i = 1, #members, 2 do parts[#parts + 1] = '"' .. members[i] .. '":' .. members[i + 1] end
  return '{' .. table.concat(parts, ',') .. '}'
end

-- Name -> JSON of every member that is known of the item.
local function everything(item)
  local asked, known = {}, {}
  for i, name in ipairs(names) do asked[i] = item .. '\\n' .. name end
  for i, value in ipairs(redis.call('HMGET', KEYS[2], unpack(asked))) do
    if value then known[names[i]] = value end
  end
  return known
end

local answers, entry, undo = {''}, {}, {}
local at = 5 + num_names
while at <= #ARGV do
  local item, sid, num_members = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local free = true
  if sid ~= '' then
    local own = redis.call('HGET', KEYS[3], item)
    if own then
      sid = own
    else
      local owner = redis.call('HGET', KEYS[4], sid)
      free = not owner or owner == item
      if free then
        redis.call('HSET', KEYS[3], item, sid)
        redis.call('HSET', KEYS[4], sid, item)
      end
    end
  end
  if free then
    local known = everything(item)
    local members, before = {}, {}
    local newness = next(known) and '' or 'new'
    for i = at + 3, at + 2 + 2 * num_members, 2 do
      redis.call('HSET', KEYS[2], item .. '\\n' .. ARGV[i], ARGV[i + 1])
      members[#members + 1] = ARGV[i]
      members[#members + 1] = ARGV[i + 1]
      before[#before + 1] = ARGV[i]
      before[#before + 1] = known[ARGV[i]] or 'null'
      known[ARGV[i]] = ARGV[i + 1]
    end
    -- A new place is read by replicas that know nothing of the item yet.
    if sid ~= '' then
      members = {}
      for _, name in ipairs(names) do
        if known[name] then
          members[#members + 1] = name
          members[#members + 1] = known[name]
        end
      end
    end
    entry[#entry + 1] = #entry / 2 + 1
    entry[#entry + 1] = table.concat({item, ARGV[2], sid, object_of(members)}, '\\n')
    undo[#undo + 1] = #undo / 2 + 1
    undo[#undo + 1] = item .. '\\n' .. newness .. object_of(before)
  end
  answers[#answers + 1] = free and sid or '!'
  at = at + 3 + 2 * num_members
end
if #entry > 0 then
  local position = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(entry))
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[1], position, unpack(undo))
  redis.call('XADD', KEYS[6], 'MAXLEN', '~', ARGV[1], position, 'n', #entry / 2)
  answers[1] = position
end
return answers
""")


class RedisCatalogLog:
    """A CatalogLog in Redis; `url` as in `RedisHistoryStore`. Nothing is connected before the first call."""

    def __init__(
        self, url: str, model_version: str, limits: ConnectionLimits | None = None, *, max_entries: int = 10_000
    ) -> None:
        self._connection = RedisConnection(
            url, limits or ConnectionLimits(), purpose="catalog log", unavailable=CatalogUnavailable
        )
        self._model_version = model_version
        self._max_entries = max_entries
        self._log, self._items = f"{_TAG}:log", f"{_TAG}:items"
        self._undo, self._entries = f"{_TAG}:undo", f"{_TAG}:entries"
        self._sid_of, self._item_at = f"{_TAG}:sid_of:{model_version}", f"{_TAG}:item_at:{model_version}"

    async def submit(self, changes: Sequence[LoggedChange]) -> list[Submitted]:
        """See CatalogLog. Not tried again after a lost connection: by then another may have changed the same items."""
        _, answers = await self._submit(changes, "")
        return [Submitted(stored=answer != b"!", sid=_sid(answer)) for answer in answers]

    async def append(self, changes: Sequence[ItemChange], *, after: str) -> str:
        """See CatalogLog."""
        position, _ = await self._submit([LoggedChange(change) for change in changes], after)
        return position

    async def _submit(self, changes: Sequence[LoggedChange], after: str) -> tuple[str, list[bytes]]:
        arguments: list[str | bytes | int] = [self._max_entries, self._model_version, after, len(MEMBERS), *MEMBERS]
        for logged in changes:
            members = logged.change.encoded()
            arguments += [logged.change.item_id, _sid_text(logged.sid), len(members)]
            for name, value in members.items():
                arguments += [name, value]
        keys = [self._log, self._items, self._sid_of, self._item_at, self._undo, self._entries]
        [(position, *answers)] = await self._connection.scripts([ScriptCall(SUBMIT, keys, arguments)], may_retry=False)
        if position == b"moved":
            raise CatalogMoved(f"the catalog's log at {self._connection.target} does not end at {after}")
        return position.decode(), answers

    async def state(self) -> LogState:
        """See CatalogLog."""
        # Before the items: what is written in between is read twice rather than never.
        newest = await self._connection.command("XREVRANGE", self._log, "+", "-", "COUNT", 1)
        position = newest[0][0].decode() if newest else START
        members: dict[str, list[bytes]] = {}
        for name, value in await self._scan(self._items):
            item_id, _, member = name.decode().rpartition("\n")
            members.setdefault(item_id, []).append(b'"%s":%s' % (member.encode(), value))
        sids = {item.decode(): _sid(sid) for item, sid in await self._scan(self._sid_of)}
        changes = [
            LoggedChange(ItemChange.decode(item_id, b"{%s}" % b",".join(found)), sids.get(item_id))
            for item_id, found in members.items()
        ]
        return LogState(changes, position)

    async def since(self, position: str) -> LogTail | None:
        """See CatalogLog."""
        if position == START:
            return LogTail((), START) if not await self._connection.command("EXISTS", self._log) else None
        entries = await self._after(self._log, position)
        if entries is None:
            return None
        changes = [self._change(value) for _, fields in entries for value in _values(fields)]
        newest = entries[-1][0].decode() if entries else position
        oldest_s = _written_s(entries[0][0]) if entries else None
        return LogTail(changes, newest, oldest_s, has_more=len(entries) == _MAX_ENTRIES_AT_ONCE)

    async def undo(self, position: str) -> Undo | None:
        """See CatalogLog."""
        if position == START:
            return undo_everything(await self.state())
        found: dict[str, Before] = {}
        while True:
            entries = await self._after(self._undo, position)
            if entries is None:
                return None
            # Long texts of many items: not on the thread that answers requests.
            await asyncio.to_thread(_sum_up, found, entries)
            position = entries[-1][0].decode() if entries else position
            if len(entries) < _MAX_ENTRIES_AT_ONCE:
                return Undo(list(found.values()), position)

    async def newest(self, count: int) -> list[LogEntry]:
        """See CatalogLog."""
        entries = await self._connection.command("XREVRANGE", self._entries, "+", "-", "COUNT", count)
        return [
            LogEntry(position.decode(), _written_s(position), int(num_changes))
            for position, fields in entries
            for num_changes in _values(fields)
        ]

    async def close(self) -> None:
        """See CatalogLog."""
        await self._connection.close()

    async def _after(self, stream: str, position: str) -> list[Any] | None:
        """Entries after a position, up to some number; None where it is not there any more."""
        # From the position on, not after it: whether it is still there tells whether anything is missing.
        entries = await self._connection.command("XRANGE", stream, position, "+", "COUNT", _MAX_ENTRIES_AT_ONCE + 1)
        return entries[1:] if entries and entries[0][0].decode() == position else None

    def _change(self, value: bytes) -> LoggedChange:
        try:
            item, model_version, sid, members = value.split(b"\n", 3)
        except ValueError as error:
            raise CatalogError(f"an entry of the catalog's log at {self._connection.target} is damaged") from error
        is_ours = model_version.decode() == self._model_version
        return LoggedChange(ItemChange.decode(item.decode(), members), _sid(sid) if is_ours else None)

    async def _scan(self, key: str) -> list[tuple[bytes, bytes]]:
        """Every field of a hash. A cursor means nothing to another server: what a failover lost is read again."""
        for _ in range(_NUM_SCANS):
            num_fields = int(await self._connection.command("HLEN", key))
            found: dict[bytes, bytes] = {}
            cursor: Any = 0
            while True:
                cursor, part = await self._connection.command("HSCAN", key, cursor, "COUNT", _SCAN_COUNT)
                found.update(_pairs(part))
                if int(cursor) == 0:
                    break
            if len(found) >= num_fields:
                return list(found.items())
        raise CatalogUnavailable(f"{key} at {self._connection.target} changes hands while it is read")


def _pairs(reply: Any) -> Iterable[tuple[bytes, bytes]]:
    """redis-py gives a dict for some commands, a flat list for others."""
    return reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)


def _values(fields: Any) -> Iterable[bytes]:
    return [value for _, value in _pairs(fields)]


def _sum_up(found: dict[str, Before], entries: Iterable[Any]) -> None:
    for _, fields in entries:
        parts = (value.partition(b"\n") for value in _values(fields))
        sum_up(found, (Before.decode(item.decode(), members) for item, _, members in parts))


def _written_s(position: bytes) -> float:
    """Unix time: the log's positions begin with it."""
    return int(position.partition(b"-")[0]) / 1000


def _sid_text(sid: Sid | None) -> str:
    return "" if sid is None else ".".join(map(str, sid))


def _sid(text: bytes) -> Sid | None:
    return None if text in (b"", b"!") else tuple(int(code) for code in text.split(b"."))
