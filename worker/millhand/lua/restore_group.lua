#!lua flags=allow-oom
-- restore_group: create the group, at a place up to which the caller knows what has become of every entry, and give the
-- entries before it that have no record yet to `@parked`, due now.
--
-- KEYS   1 input  2 parked  3 totals
-- ARGV   1 group  2 start: the group's last delivered id from now on  3... ids up to it that are still to be enriched
-- answer 'ok'    created; `group:<name>` in the totals says from now on that there was one
--        'gone'  there is one: somebody else was faster
--
-- All in one script: a worker that could read between the creation and the claims would find a hole. Safe to send again.
local key, parked, totals = unpack(KEYS)
local group = ARGV[1]
local PARKED = '@parked'

local created = redis.pcall('XGROUP', 'CREATE', key, group, ARGV[2], 'MKSTREAM')
if created.err then
  return string.find(created.err, 'BUSYGROUP', 1, true) and 'gone' or created
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 3, #ARGV do
  redis.call('XCLAIM', key, group, PARKED, 0, ARGV[i], 'FORCE', 'JUSTID')
  redis.call('ZADD', parked, now, ARGV[i])
end
redis.call('HINCRBY', totals, 'group:' .. group, 1)
return 'ok'
