#!lua flags=allow-oom
-- Write the one verdict of an open frame, count it and delete the frame. An inspector may do so only
-- while the entry is pending for it with the delivery count it was handed (the fencing token); the
-- gate keeper gives no consumer and only has to find the frame open. An inspector's decision that comes
-- after the gate is refused by the server's own clock, so that a part which has gone by is never said
-- to have passed, even where nobody keeps the gate: who takes the frame over answers UNDECIDED. Full
-- memory does not stop it: answering is what frees memory.
-- KEYS frames, open, heads, ledger, verdicts, quarantine, unacted
-- ARGV group, entry id, consumer or '', deliveries, ledger field, verdict, mask, picture,
--      map, quarantine length, fields to set aside in quarantine...
-- Returns 1 if the verdict was written.
local frames, open, heads, ledger, verdicts, quarantine, unacted = unpack(KEYS)
local group, id, consumer, deliveries, outcome = unpack(ARGV, 1, 5)

if consumer ~= '' then
  local pending = redis.pcall('XPENDING', frames, group, id, id, 1)
  local entry = pending[1] -- no entry, or no group at all: not ours
  if not entry or entry[2] ~= consumer or entry[4] ~= tonumber(deliveries) then
    return 0
  end
end

local is_open = redis.call('ZSCORE', open, id) -- its deadline, microseconds
if is_open and consumer ~= '' and (outcome == 'pass' or outcome == 'fail') then
  local now = redis.call('TIME')
  if tonumber(now[1]) * 1000000 + tonumber(now[2]) > tonumber(is_open) then return 0 end
end
if is_open then
  local start, number = unpack(redis.call('HMGET', ledger, 'verdicts_start', 'verdicts'))
  if not start then
    local now = redis.call('TIME')
    start = string.format('%.0f', tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000))
  end
  -- Verdict ids are <start>-<number>: gapless, and later than those of a server that was lost. XADD is
  -- the first write, since it is the one that could be refused.
  number = tonumber(number or 0) + 1
  redis.call('XADD', verdicts, start .. '-' .. number,
    'verdict', ARGV[6], 'mask', ARGV[7], 'picture', ARGV[8], 'map', ARGV[9])
  redis.call('HSET', ledger, 'verdicts_start', start, 'verdicts', number)
  redis.call('HINCRBY', ledger, outcome, 1)
  redis.call('HSET', unacted, id, outcome)
  redis.call('ZREM', open, id)
  redis.call('HDEL', heads, id)
end
if #ARGV > 10 then
  redis.call('XADD', quarantine, 'MAXLEN', ARGV[10], '*', unpack(ARGV, 11))
end
-- An entry that is not open was never admitted by us: it goes too, without a verdict.
redis.call('XACK', frames, group, id)
redis.call('XDEL', frames, id)
return is_open and 1 or 0
