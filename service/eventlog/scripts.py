"""The Lua scripts of the one who drains the streams, each one atomic."""

from service.connection import Script

READ = Script("""
-- Up to ARGV 3 entries of a stream (KEYS 1) behind the id ARGV 2, for the collector ARGV 1, which owns it (KEYS 2) from
-- then on. Another one's: its name.
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[1] then return owner end
if not owner then
  redis.call('DEL', KEYS[2])  -- after it Redis lets a script write, however full it is
  redis.call('SET', KEYS[2], ARGV[1])
end
if redis.call('XLEN', KEYS[1]) == 0 then return {} end
return redis.call('XRANGE', KEYS[1], '(' .. ARGV[2], '+', 'COUNT', ARGV[3])
""")

TRIM = Script("""
-- Takes from a stream (KEYS 1) what lies before the id ARGV 2, if the collector ARGV 1 owns it (KEYS 2). Another one's:
-- its name. Nobody's: -1, for then the id is of another Redis, or of this one before it lost what it had.
local owner = redis.call('GET', KEYS[2])
if not owner then return -1 end
if owner ~= ARGV[1] then return owner end
return redis.call('XTRIM', KEYS[1], 'MINID', ARGV[2])
""")

LENGTH = Script("""
-- Entries of a stream (KEYS 1).
return redis.call('XLEN', KEYS[1])
""")

OWNER = Script("""
-- Name of the collector that owns a stream (KEYS 1).
return redis.call('GET', KEYS[1])
""")

TAKE_OVER = Script("""
-- Makes the collector ARGV 1 the owner (KEYS 1) of a stream, whoever it was.
-- The deletion comes first: after it Redis lets a script write, however full it is.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
return 1
""")
