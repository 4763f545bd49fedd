-- Reset the idle time of entries that are still pending for this consumer with this delivery count; a
-- bare XCLAIM would take back what another consumer has reclaimed since.
-- KEYS stream; ARGV group, consumer, then entry id and deliveries of each. Returns the ids still held.
local stream, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local held = {}
for at = 3, #ARGV, 2 do
  local id, deliveries = ARGV[at], tonumber(ARGV[at + 1])
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  local entry = pending[1]
  if entry and entry[2] == consumer and entry[4] == deliveries then
    local claimed = redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')
    if #claimed == 1 then held[#held + 1] = id end
  end
end
return held
