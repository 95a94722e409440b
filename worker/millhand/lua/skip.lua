#!lua flags=allow-oom
-- skip: acknowledge an entry that repeats another's event_id; the other one has, or will have, the record of both.
--
-- KEYS   1 input  2 parked  3 attempts  4 redrives  5 closed  6 totals
-- ARGV   1 group  2 id
-- answer 'ok'    acknowledged
--        'gone'  no longer pending: settled before
--
-- `closed` remembers that it needs no record, should the group ever have to be put back from the records.
-- As in finish whoever comes first may: that an event_id is taken does not change. Safe to send again.
local key, parked, attempts, redrives, closed, totals = unpack(KEYS)
local group, id = ARGV[1], ARGV[2]

if #redis.call('XPENDING', key, group, id, id, 1) == 0 then
  return 'gone'
end
redis.call('XACK', key, group, id)
redis.call('ZREM', parked, id)
redis.call('HDEL', attempts, id)
redis.call('HDEL', redrives, id)
redis.call('ZADD', closed, string.match(id, '^%d+'), id)
redis.call('HINCRBY', totals, 'skipped', 1)
return 'ok'
