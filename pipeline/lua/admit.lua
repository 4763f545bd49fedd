#!lua flags=allow-oom
-- Take a frame into the open set, once. A large payload never passes through here: its XADD follows
-- in the same MULTI. A small one (a place in shared memory) does, which saves the MULTI; then this
-- runs without its flag, so that a full server refuses it whole. A camera's ids ascend, so an id at
-- or below the highest one taken is a repeat, whether its frame is still open or was answered long
-- ago. A server that was lost and came back unseen must not take a new frame before those that were
-- open at its loss: it has not begun their epoch.
-- KEYS open, heads, ledger, epoch, frames
-- ARGV entry id, deadline (microseconds), head, '1' where its epoch must be the one begun here,
--      fields of a small payload...
-- Returns 1 if taken.
local open, heads, ledger, epoch, frames = unpack(KEYS)
local id, deadline_us, head, must_be_begun = unpack(ARGV, 1, 4)

local function parts(text)
  local epoch, counter = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(counter)
end

if must_be_begun == '1' and redis.call('GET', epoch) ~= string.match(id, '^%d+') then
  return redis.error_reply('UNBEGUN this server has not begun the epoch of ' .. id)
end
local highest = redis.call('HGET', ledger, 'highest_id')
if highest then
  local epoch, counter = parts(id)
  local last_epoch, last_counter = parts(highest)
  if epoch < last_epoch or (epoch == last_epoch and counter <= last_counter) then
    return 0
  end
end
if #ARGV > 4 then
  redis.call('XADD', frames, id, unpack(ARGV, 5))
end
redis.call('ZADD', open, deadline_us, id)
redis.call('HSET', heads, id, head)
redis.call('HINCRBY', ledger, 'captured', 1)
redis.call('HSET', ledger, 'highest_id', id)
return 1
