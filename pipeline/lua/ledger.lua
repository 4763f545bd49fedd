#!lua flags=no-writes
-- The counts and the number of open frames at one instant. Not a MULTI: a full server refuses those.
-- KEYS ledger, open. Returns the fields and values of the ledger, and how many frames are open.
return { redis.call('HGETALL', KEYS[1]), redis.call('ZCARD', KEYS[2]) }
