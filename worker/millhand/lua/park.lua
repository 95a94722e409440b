#!lua flags=allow-oom
-- park: put an entry aside until its retry is due; `@parked` owns it meanwhile. Strict about (owner, count), as bury is.
--
-- KEYS   1 input  2 parked  3 attempts  4 totals
-- ARGV   1 group  2 id  3 owner  4 count  5 due in ms  6 attempts spent
--        7 record of the attempts (JSON, with its member "attempts")
-- answer 'ok'       parked
--        'gone'     no longer pending, or parked with these attempts before: settled
--        'lost'     pending in other hands
--        'deleted'  pending, but no longer in the stream: bury it
--
-- XCLAIM drops a deleted entry from the pending list without a word, so that is asked first. ZADD stands after XCLAIM:
-- the pending list of `@parked` is the truth, the zset only says when. The delivery count stays: a retry is no crash.
-- Safe to send again.
local key, parked, attempts, totals = unpack(KEYS)
local group, id, owner, count, spent = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[6])
local PARKED = '@parked'

local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
if not pending then
  return 'gone'
end
local before = redis.call('HGET', attempts, id)
if before and cjson.decode(before)['attempts'] >= spent then
  return 'gone'
end
if pending[2] ~= owner or pending[4] ~= count then
  return 'lost'
end
if #redis.call('XRANGE', key, id, id) == 0 then
  return 'deleted'
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('XCLAIM', key, group, PARKED, 0, id, 'JUSTID')
redis.call('ZADD', parked, now + tonumber(ARGV[5]), id)
redis.call('HSET', attempts, id, ARGV[7])
redis.call('HINCRBY', totals, 'retried', 1)
return 'ok'
