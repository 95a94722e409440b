#!lua flags=allow-oom
-- evict: take the permits of consumers that are gone, and a probe's lease, so that nobody waits until they expire.
--
-- KEYS   1 gate  2 permits
-- ARGV   1... consumers
-- answer how many permits there were
--
-- A permit's id is its consumer's name, a slash, and a number. Safe to send again.
local gate, permits = KEYS[1], KEYS[2]
local gone = {}
for _, consumer in ipairs(ARGV) do
  gone[consumer] = true
end
local function is_gone(id)
  return gone[string.match(id, '^(.*)/%d+$') or '']
end

local evicted = 0
for _, id in ipairs(redis.call('ZRANGE', permits, 0, -1)) do
  if is_gone(id) then
    evicted = evicted + redis.call('ZREM', permits, id)
  end
end
local prober = redis.call('HGET', gate, 'prober')
if prober and is_gone(prober) then
  redis.call('HDEL', gate, 'prober', 'prober_until')
end
return evicted
