#!lua flags=allow-oom
-- hold: tell again which permits a worker holds, so that they are known where the key was lost.
--
-- KEYS   1 permits
-- ARGV   1... id, ms until it expires, id, ...
-- answer how many of them had been lost
--
-- Safe to send again.
local permits, lost = KEYS[1], 0
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for place = 1, #ARGV, 2 do
  lost = lost + redis.call('ZADD', permits, now + ARGV[place + 1], ARGV[place])
end
return lost
