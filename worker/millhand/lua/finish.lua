#!lua flags=allow-oom
-- finish: write enriched events and acknowledge the raw ones, each for itself. The first finisher wins, whoever owns the
-- entry by now: a slow but right answer is not thrown away.
--
-- KEYS   1 input  2 output  3 parked  4 attempts  5 redrives  6 totals
-- ARGV   1 group  2... an event each: id, data, hash, how many values follow, further fields and values of its output
--        entry
-- answer for each event
--        'ok'    written and acknowledged
--        'gone'  no longer pending: settled before, by this call's lost predecessor or by somebody else
--
-- XADD stands before XACK: an XADD that fails (wrong type, no permission) ends the script and leaves its event pending.
-- What stood before it is done, and counted. That XACK is permitted is asked first, for else every call would write once
-- more. Whether anything is parked or retried at all is asked once for all. So is what is pending, since events that were
-- read together stand side by side there; what is not among that is asked about alone. Safe to send again.
local HEAD = 4
local key, output, parked, attempts, redrives, totals = unpack(KEYS)
local group = ARGV[1]
if not redis.acl_check_cmd('XACK', key, group, ARGV[2]) then
  return redis.error_reply('NOPERM this user may not XACK ' .. key)
end
local any_came_back = redis.call('EXISTS', parked, attempts, redrives) > 0
local answers, written, failed = {}, 0, nil
local pending = {}
for _, row in ipairs(redis.call('XPENDING', key, group, ARGV[2], '+', math.floor((#ARGV - 1) / HEAD))) do
  pending[row[1]] = true
end
local place = 2
while place < #ARGV and not failed do
  local id, values = ARGV[place], tonumber(ARGV[place + 3])
  local last = place + HEAD + values - 1
  if not pending[id] and #redis.call('XPENDING', key, group, id, id, 1) == 0 then
    answers[#answers + 1] = 'gone'
  else
    local data, hash = ARGV[place + 1], ARGV[place + 2]
    local added = redis.pcall('XADD', output, '*', 'data', data, 'src', id, 'hash', hash, unpack(ARGV, place + HEAD, last))
    if type(added) == 'table' then
      failed = added
    else
      redis.call('XACK', key, group, id)
      pending[id] = nil  -- it may be here twice, out of the hands of one worker
      if any_came_back then
        redis.call('ZREM', parked, id)
        redis.call('HDEL', attempts, id)
        redis.call('HDEL', redrives, id)
      end
      written = written + 1
      answers[#answers + 1] = 'ok'
    end
  end
  place = last + 1
end
if written > 0 then
  redis.call('HINCRBY', totals, 'enriched', written)
end
return failed or answers
