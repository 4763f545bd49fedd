-- The next epoch of a camera: the server's time in milliseconds, and above the last one, so that it
-- ascends whether or not the server remembers. KEYS epoch. Returns the epoch as text.
local now = redis.call('TIME')
local epoch = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local last = tonumber(redis.call('GET', KEYS[1]) or 0)
local text = string.format('%.0f', math.max(epoch, last + 1))
redis.call('SET', KEYS[1], text)
return text
