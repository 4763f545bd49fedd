#!lua flags=no-writes
-- Where every frame of a camera stands, at one instant. What nobody listens to is as good as acted on,
-- unless the caller knows of a sink that this server has not met yet.
-- KEYS open, unacted, ledger, verdicts; ARGV '1' where a sink is known.
-- Returns the open ids, {id, ledger field...} answered and not acted on, the ledger, the number of sinks.
local open, unacted, ledger, verdicts = unpack(KEYS)
local groups = redis.pcall('XINFO', 'GROUPS', verdicts)
local sinks = groups.err and 0 or #groups
local waiting = {}
if sinks > 0 or ARGV[1] == '1' then waiting = redis.call('HGETALL', unacted) end
return { redis.call('ZRANGE', open, 0, -1), waiting, redis.call('HGETALL', ledger), sinks }
