#!lua flags=allow-oom
-- A sink has acted on verdicts. Where it had acted on the frame before (a server that was lost, a
-- frame answered again), the ledger goes by what was acted on. XACK says 1 once only, so a repeat of
-- this call corrects nothing twice.
-- KEYS verdicts, unacted, ledger
-- ARGV group, then of each verdict: its entry id, its frame's, the ledger field written, the one acted on.
local verdicts, unacted, ledger = unpack(KEYS)
for at = 2, #ARGV, 4 do
  local id, frame, written, acted = unpack(ARGV, at, at + 3)
  if redis.call('XACK', verdicts, ARGV[1], id) == 1 then
    redis.call('HDEL', unacted, frame)
    if acted ~= written then
      redis.call('HINCRBY', ledger, written, -1)
      redis.call('HINCRBY', ledger, acted, 1)
    end
  end
end
return 1
