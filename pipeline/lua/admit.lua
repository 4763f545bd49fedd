#!lua flags=allow-oom
-- Take a frame into the open set, once. Runs in one MULTI with the XADD of the payload, which never
-- passes through here. A camera's ids ascend, so an id at or below the highest one taken is a repeat,
-- whether its frame is still open or was answered long ago.
-- KEYS open, heads, ledger; ARGV entry id, deadline (microseconds), head. Returns 1 if taken.
local open, heads, ledger = unpack(KEYS)
local id, deadline_us, head = unpack(ARGV)

local function parts(text)
  local epoch, counter = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(counter)
end

local highest = redis.call('HGET', ledger, 'highest_id')
if highest then
  local epoch, counter = parts(id)
  local last_epoch, last_counter = parts(highest)
  if epoch < last_epoch or (epoch == last_epoch and counter <= last_counter) then
    return 0
  end
end
redis.call('ZADD', open, deadline_us, id)
redis.call('HSET', heads, id, head)
redis.call('HINCRBY', ledger, 'captured', 1)
redis.call('HSET', ledger, 'highest_id', id)
return 1
