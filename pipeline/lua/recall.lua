-- Begin the ledger of an empty server with what was counted before; one that remembers keeps its own.
-- KEYS ledger; ARGV ledger field, count... Returns 1 if it was taken.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
