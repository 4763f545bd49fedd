-- Take over entries that have been idle too long, raising the delivery count that fences their old
-- owner off. Only ids travel through here; the caller reads the payloads. (XAUTOCLAIM would not tell the
-- delivery counts, and reading them afterwards would be a second, later truth.)
-- KEYS stream; ARGV group, consumer, idle milliseconds, count.
-- Returns {id, deliveries, id, deliveries...} and the ids whose payload is gone.
local stream, group, consumer, idle_ms, count = KEYS[1], unpack(ARGV)
local taken, lost = {}, {}
local pending = redis.pcall('XPENDING', stream, group, 'IDLE', idle_ms, '-', '+', count)
if pending.err then return { taken, lost } end -- no such group yet: nothing is pending
for _, entry in ipairs(pending) do
  local id, deliveries = entry[1], entry[4] + 1
  local claimed = redis.call('XCLAIM', stream, group, consumer, 0, id,
    'RETRYCOUNT', deliveries, 'JUSTID')
  if #claimed == 1 then
    taken[#taken + 1] = id
    taken[#taken + 1] = deliveries
  else
    lost[#lost + 1] = id -- the server has struck it from the pending entries
  end
end
return { taken, lost }
