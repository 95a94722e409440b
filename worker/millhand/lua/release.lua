#!lua flags=allow-oom
-- release: let go of an entry, so that whoever is free takes it at once: `@parked` owns it, due now. That is how a worker
-- that stops hands back what it holds, and how the janitor hands back what a dead one held. Strict about (owner, count).
--
-- KEYS   1 input  2 parked  3 totals
-- ARGV   1 group  2 id  3 owner  4 count  5 count from now on: the same, or one more if a delivery was spent
--        6 the total to raise: released or handed_back
-- answer 'ok'       released
--        'gone'     no longer pending: settled
--        'lost'     in other hands, perhaps those to whom this call's lost predecessor gave it
--        'deleted'  pending, but no longer in the stream: bury it
--
-- XCLAIM drops a deleted entry from the pending list without a word, so that is asked first. ZADD stands after XCLAIM:
-- the pending list of `@parked` is the truth, the zset only says when. Safe to send again.
local key, parked, totals = unpack(KEYS)
local group, id, owner, count = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local PARKED = '@parked'

local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
if not pending then
  return 'gone'
end
if pending[2] ~= owner or pending[4] ~= count then
  return 'lost'
end
if #redis.call('XRANGE', key, id, id) == 0 then
  return 'deleted'
end

local time = redis.call('TIME')
redis.call('XCLAIM', key, group, PARKED, 0, id, 'RETRYCOUNT', ARGV[5], 'JUSTID')
redis.call('ZADD', parked, time[1] * 1000 + math.floor(time[2] / 1000), id)
redis.call('HINCRBY', totals, ARGV[6], 1)
return 'ok'
