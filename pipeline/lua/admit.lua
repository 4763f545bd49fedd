#!lua flags=allow-oom
-- Take frames of a camera into the open set, each once. A large payload never passes through here: its
-- XADD follows in the same MULTI. A small one (a place in shared memory) does, which saves the MULTI,
-- and lets several frames share a script; then this runs without its flag, so that a full server
-- refuses it whole. A camera's ids ascend, so an id at or below the highest one taken is a repeat,
-- whether its frame is still open or was answered long ago. A server that was lost and came back unseen
-- must not take a new frame before those that were open at its loss: it has not begun their epoch.
-- KEYS open, heads, ledger, epoch, frames
-- ARGV '1' where their epoch must be the one begun here,
--      then of each frame, in the order of their ids:
--      entry id, deadline (microseconds), head, how many words of a small payload follow, those words
-- Returns how many were taken. Where one cannot be taken, neither are those after it.
local open, heads, ledger, epoch, frames = unpack(KEYS)

local function parts(text)
  local first, counter = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(first), tonumber(counter)
end

if ARGV[1] == '1' and redis.call('GET', epoch) ~= string.match(ARGV[2], '^%d+') then
  return redis.error_reply('UNBEGUN this server has not begun the epoch of ' .. ARGV[2])
end
local highest = redis.call('HGET', ledger, 'highest_id')
local last_epoch, last_counter = parts(highest or '0-0')
local at, taken, refusal = 2, 0, nil
while at <= #ARGV do
  local id, deadline_us, head, words = unpack(ARGV, at, at + 3)
  local payload, after = at + 4, at + 4 + tonumber(words)
  local of_epoch, counter = parts(id)
  if of_epoch > last_epoch or (of_epoch == last_epoch and counter > last_counter) then
    local added = after > payload and redis.pcall('XADD', frames, id, unpack(ARGV, payload, after - 1))
    if type(added) == 'table' and added.err then
      refusal = added
      break
    end
    redis.call('ZADD', open, deadline_us, id)
    redis.call('HSET', heads, id, head)
    highest, last_epoch, last_counter, taken = id, of_epoch, counter, taken + 1
  end
  at = after
end
if taken > 0 then
  redis.call('HINCRBY', ledger, 'captured', taken)
  redis.call('HSET', ledger, 'highest_id', highest)
end
return refusal or taken
