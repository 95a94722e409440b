#!lua flags=allow-oom
-- park: take an entry out of a consumer's hands until it is due; `@parked` owns it meanwhile. Due at once is how a worker
-- that stops releases, and how the janitor hands back what a dead one held. Strict about (owner, count), as bury is.
--
-- KEYS   1 input  2 parked  3 attempts  4 totals
-- ARGV   1 group  2 id  3 owner  4 count  5 count from now on  6 due in ms  7 attempts spent ('' = as before)
--        8 record of the attempts (JSON, with its member "attempts")  9 the total to raise
-- answer 'ok'       parked
--        'gone'     no longer pending, or parked with these attempts before: settled
--        'lost'     pending in other hands
--        'deleted'  pending, but no longer in the stream: bury it
--
-- XCLAIM drops a deleted entry from the pending list without a word, so that is asked first. ZADD stands after XCLAIM:
-- the pending list of `@parked` is the truth, the zset only says when. Safe to send again.
local key, parked, attempts, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, id, owner, count = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local PARKED = '@parked'

local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
if not pending then
  return 'gone'
end
if ARGV[7] ~= '' then
  local before = redis.call('HGET', attempts, id)
  if before and cjson.decode(before)['attempts'] >= tonumber(ARGV[7]) then
    return 'gone'
  end
end
if pending[2] ~= owner or pending[4] ~= count then
  return 'lost'
end
if #redis.call('XRANGE', key, id, id) == 0 then
  return 'deleted'
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('XCLAIM', key, group, PARKED, 0, id, 'RETRYCOUNT', ARGV[5], 'JUSTID')
redis.call('ZADD', parked, now + tonumber(ARGV[6]), id)
if ARGV[7] ~= '' then
  redis.call('HSET', attempts, id, ARGV[8])
end
redis.call('HINCRBY', totals, ARGV[9], 1)
return 'ok'
