#!lua
-- take_due: give a consumer the parked entries whose time has come. Their delivery count stays: a retry is no crash.
--
-- KEYS   1 input  2 parked  3 attempts
-- ARGV   1 group  2 consumer  3 how many at most  4 deliveries after which a crash buries
-- answer {ms until the next is due or -1, now in ms of the server's clock,
--         {{id, owner, count, record of the attempts or '', {field, value, ...}}, ...}}
--
-- Without allow-oom: a server that is full refuses it, as it refuses places (gate.py), so that nothing more is taken in
-- hand and memory is left to finish what is.
-- A suspect, which came back from workers that died and has its last chance, is given out alone: if it kills this worker
-- too, nothing else was in hand with it that could be buried for it.
-- A deleted entry is given out without fields, and stays with `@parked` since XCLAIM would drop it: its taker buries it.
-- XCLAIM stands before ZREM: what is lost between them is found again in the pending list.
local key, parked, attempts = KEYS[1], KEYS[2], KEYS[3]
local group, consumer, limit, last_chance = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local PARKED = '@parked'

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', parked, '-inf', now, 'LIMIT', 0, limit)) do
  local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
  local suspect = pending and pending[2] == PARKED and pending[4] > 1 and pending[4] >= last_chance
  if suspect and #taken > 0 then
    break
  end
  if pending and pending[2] == PARKED then
    local entry = redis.call('XRANGE', key, id, id)[1]
    local owner = PARKED
    if entry then
      redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID')
      owner = consumer
    end
    local record = redis.call('HGET', attempts, id) or ''
    taken[#taken + 1] = {id, owner, pending[4], record, entry and entry[2] or {}}
  end
  redis.call('ZREM', parked, id)
  if suspect then
    break
  end
end
local next_due = redis.call('ZRANGE', parked, 0, 0, 'WITHSCORES')[2]
return {next_due and math.max(0, tonumber(next_due) - now) or -1, now, taken}
