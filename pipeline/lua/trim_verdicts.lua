-- Delete the verdicts that every group has acknowledged, except the newest `keep`.
-- KEYS verdicts, ledger; ARGV keep. Returns how many were deleted.
local verdicts, ledger = unpack(KEYS)
local counts = redis.call('HMGET', ledger, 'verdicts_start', 'verdicts')
local groups = redis.pcall('XINFO', 'GROUPS', verdicts)
if not counts[1] or groups.err then return 0 end

local function parts(text)
  local start, number = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(start), tonumber(number)
end

local start, number = tonumber(counts[1]), math.max(0, tonumber(counts[2]) - tonumber(ARGV[1]) + 1)
local function keep_from(other_start, other_number)
  if other_start < start or (other_start == start and other_number < number) then
    start, number = other_start, other_number
  end
end

for _, flat in ipairs(groups) do
  local group = {}
  for at = 1, #flat, 2 do group[flat[at]] = flat[at + 1] end
  local pending = redis.call('XPENDING', verdicts, group['name'])
  if pending[1] > 0 then keep_from(parts(pending[2])) end
  local delivered_start, delivered_number = parts(group['last-delivered-id'])
  keep_from(delivered_start, delivered_number + 1)
end
return redis.call('XTRIM', verdicts, 'MINID', string.format('%.0f-%.0f', start, number))
