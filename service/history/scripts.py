"""The Lua scripts that run inside Redis (6.2 and later), each one atomic."""

from service.connection import Script

APPEND = Script("""
-- Appends events of one user, each event id once.
-- KEYS  1 history  2 seen items  3-5 event ids of the last, this and the next period
--       6 the user's pseudonym  7 event log (both only where there is one)
-- ARGV  1 oldest ms to keep  2 oldest ms to leave lying  3 history cap  4 history bytes to cut at  5 seen cap
--       6 seen bytes to cut at  7 event id period ms  8 lifetime ms  9 packed entries  10 rows that the log may hold
--       11 pseudonym of a user who has none  12.. one event id digest per entry, '' for none, then, where there is a
--       log, one row of it per entry
-- Returns one character per entry: 1 stored, 0 duplicate; or F: the log is full, and nothing was done.
local ENTRY, SEEN = 19, 9
local packed = ARGV[9]
local num_entries = #packed / ENTRY
if KEYS[7] then
  local waiting = redis.call('XLEN', KEYS[7])
  -- An empty log takes as many events as come at once: they would find no room at any later time either.
  if waiting > 0 and waiting + num_entries > tonumber(ARGV[10]) then return 'F' end
end

local function time_of(bytes, i)
  local a, b, c, d, e, f = string.byte(bytes, i * ENTRY + 9, i * ENTRY + 14)
  return a + b * 256 + c * 65536 + d * 16777216 + e * 4294967296 + f * 1099511627776
end

local function entry_of(bytes, i)
  return string.sub(bytes, i * ENTRY + 1, (i + 1) * ENTRY)
end

-- Event ids are kept per user in one set of 64-bit digests per period. A period older than the last is never looked
-- at again, so nothing is trimmed: a set expires as a whole. The next period is looked at too, because clocks of
-- replicas differ.
local flags, fresh, seen, logged = {}, {}, {}, {}
for i = 0, num_entries - 1 do
  local digest = ARGV[12 + i]
  local new = digest == '' or (redis.call('SISMEMBER', KEYS[3], digest) == 0
    and redis.call('SISMEMBER', KEYS[5], digest) == 0 and redis.call('SADD', KEYS[4], digest) == 1)
  flags[i + 1] = new and '1' or '0'
  if new then
    local entry = entry_of(packed, i)
    local at = time_of(entry, 0)
    seen[#seen + 1] = string.sub(entry, 1, 8) .. string.sub(entry, 15, 15)
    logged[#logged + 1] = ARGV[12 + num_entries + i]
    if at >= tonumber(ARGV[1]) then fresh[#fresh + 1] = {at, i, entry} end
  end
end
local answer = table.concat(flags)
if #seen == 0 then return answer end
local id_lifetime = redis.call('PTTL', KEYS[4])
if id_lifetime ~= -2 and id_lifetime < tonumber(ARGV[7]) then
  redis.call('PEXPIRE', KEYS[4], string.format('%.0f', 2 * tonumber(ARGV[7])))
end

local function append(entries)
  table.sort(entries, function(x, y) return x[1] < y[1] or (x[1] == y[1] and x[2] < y[2]) end)
  local ordered = {}
  for j, entry in ipairs(entries) do ordered[j] = entry[3] end
  local tail = redis.call('GETRANGE', KEYS[1], -ENTRY, -1)
  if tail == '' or time_of(tail, 0) <= entries[1][1] then
    return redis.call('APPEND', KEYS[1], table.concat(ordered))
  end
  -- A late event: walk back to its place, merge from there on, and write only what moved.
  local body = redis.call('GET', KEYS[1])
  local num_old = #body / ENTRY
  local keep = num_old
  while keep > 0 and time_of(body, keep - 1) > entries[1][1] do keep = keep - 1 end
  local merged, j = {}, 1
  for i = keep, num_old - 1 do
    local at = time_of(body, i)
    while j <= #entries and entries[j][1] < at do
      merged[#merged + 1] = ordered[j]
      j = j + 1
    end
    merged[#merged + 1] = entry_of(body, i)
  end
  for rest = j, #entries do merged[#merged + 1] = ordered[rest] end
  return redis.call('SETRANGE', KEYS[1], keep * ENTRY, table.concat(merged))
end

if #fresh > 0 then
  -- Cutting rewrites the string, so it waits until a quarter too much has gathered; readers take the newest anyway.
  local num_bytes = append(fresh)
  if num_bytes > tonumber(ARGV[4]) or time_of(redis.call('GETRANGE', KEYS[1], 0, ENTRY - 1), 0) < tonumber(ARGV[2]) then
    local body = redis.call('GETRANGE', KEYS[1], -ENTRY * tonumber(ARGV[3]), -1)
    local first = 0
    while (first + 1) * ENTRY < #body and time_of(body, first) < tonumber(ARGV[1]) do first = first + 1 end
    redis.call('SET', KEYS[1], string.sub(body, first * ENTRY + 1), 'KEEPTTL')
  end
end

if redis.call('APPEND', KEYS[2], table.concat(seen)) > tonumber(ARGV[6]) then
  -- Keep the last of each pair, the newest first until the cap.
  local body = redis.call('GET', KEYS[2])
  local met, kept = {}, {}
  for i = #body / SEEN - 1, 0, -1 do
    local pair = string.sub(body, i * SEEN + 1, (i + 1) * SEEN)
    if not met[pair] then
      met[pair] = true
      table.insert(kept, pair)
      if #kept == tonumber(ARGV[5]) then break end
    end
  end
  for i = 1, math.floor(#kept / 2) do kept[i], kept[#kept + 1 - i] = kept[#kept + 1 - i], kept[i] end
  redis.call('SET', KEYS[2], table.concat(kept), 'KEEPTTL')
end

-- Lifetimes are renewed when a sixteenth has passed, not at every event: that would double the writes to disk.
for key = 1, 2 do
  local lifetime = redis.call('PTTL', KEYS[key])
  if lifetime ~= -2 and lifetime < tonumber(ARGV[8]) * 15 / 16 then redis.call('PEXPIRE', KEYS[key], ARGV[8]) end
end

if KEYS[7] then
  redis.call('SETNX', KEYS[6], ARGV[11])
  local pseudonym = redis.call('GET', KEYS[6])
  for _, row in ipairs(logged) do redis.call('XADD', KEYS[7], '*', 'k', 'e', 'u', pseudonym, 'd', row) end
end
return answer
""")

REMEMBER = Script("""
-- Appends one shown slate (ARGV 1) to a user's (KEYS 1), and cuts the oldest while all are longer than ARGV 2 bytes.
-- They live for another ARGV 3 ms. ARGV 2 0: none is kept.
-- Where there is an event log (KEYS 3; KEYS 2 the user's pseudonym), its row is ARGV 6, if the log holds fewer than
-- ARGV 4; ARGV 5: pseudonym of a user who has none. Returns 1, or 0 when the log had no room.
local HEADER = 33
local most = tonumber(ARGV[2])
if most > 0 then
  local num_bytes = redis.call('APPEND', KEYS[1], ARGV[1])
  if num_bytes > most then
    local body = redis.call('GET', KEYS[1])
    local from = 0
    while num_bytes - from > most do from = from + HEADER + 8 * string.byte(body, from + HEADER) end
    redis.call('SET', KEYS[1], string.sub(body, from + 1))
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
if not KEYS[3] then return 1 end
if redis.call('XLEN', KEYS[3]) >= tonumber(ARGV[4]) then return 0 end
redis.call('SETNX', KEYS[2], ARGV[5])
redis.call('XADD', KEYS[3], '*', 'k', 'i', 'u', redis.call('GET', KEYS[2]), 'd', ARGV[6])
return 1
""")

FORGET = Script("""
-- Forgets a user: KEYS 1 the user's pseudonym, 2 event log, 3.. everything else. ARGV 1: the row that tells the log so,
-- whatever room it has. Returns how many keys there were.
-- The deletion comes first: after it Redis lets a script write, however full it is.
local pseudonym = redis.call('GET', KEYS[1])
local num_keys = redis.call('DEL', KEYS[1], unpack(KEYS, 3))
if pseudonym then redis.call('XADD', KEYS[2], '*', 'k', 'f', 'u', pseudonym, 'd', ARGV[1]) end
return num_keys
""")

REGISTER_ACTIONS = Script("""
-- Appends those names (ARGV 2..) that the registry (KEYS 1) lacks, while it has room for ARGV 1 names; returns all.
local names = redis.call('LRANGE', KEYS[1], 0, -1)
local known = {}
for _, name in ipairs(names) do known[name] = true end
for i = 2, #ARGV do
  if not known[ARGV[i]] and #names < tonumber(ARGV[1]) then
    redis.call('RPUSH', KEYS[1], ARGV[i])
    known[ARGV[i]] = true
    names[#names + 1] = ARGV[i]
  end
end
return names
""")

SOME_USERS = Script("""
-- Up to ARGV 2 different keys that look like ARGV 1 (a pattern whose capture is returned), of ARGV 3 drawn at random.
-- KEYS 1: any key, which says what node to draw from.
local found, met = {}, {}
for _ = 1, tonumber(ARGV[3]) do
  local key = redis.call('RANDOMKEY')
  local user = key and string.match(key, ARGV[1])
  if user and not met[user] then
    met[user] = true
    found[#found + 1] = user
    if #found == tonumber(ARGV[2]) then break end
  end
end
return found
""")

TELL = Script("""
-- Tells who was forgotten: ARGV 1, by the stream KEYS 1, for ARGV 2 ms.
-- Trimming comes first: after it Redis lets a script write, however full it is.
local oldest = redis.call('TIME')[1] * 1000 - tonumber(ARGV[2])
redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', oldest))
redis.call('XADD', KEYS[1], '*', 'u', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
""")
