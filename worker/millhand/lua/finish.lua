#!lua flags=allow-oom
-- finish: write the enriched event and acknowledge the raw one. The first finisher wins, whoever owns the entry by now:
-- a slow but right answer is not thrown away.
--
-- KEYS   1 input  2 output  3 parked  4 attempts  5 redrives  6 totals
-- ARGV   1 group  2 id  3 data  4 hash  5... further fields and values of the output entry
-- answer 'ok'    written and acknowledged
--        'gone'  no longer pending: settled before, by this call's lost predecessor or by somebody else
--
-- XADD stands before XACK: an XADD that fails (wrong type, no permission) ends the script and leaves the event pending.
-- That XACK is permitted is asked first, for else every call would write once more. Safe to send again.
local key, output, parked, attempts, redrives, totals = unpack(KEYS)
local group, id = ARGV[1], ARGV[2]

if #redis.call('XPENDING', key, group, id, id, 1) == 0 then
  return 'gone'
end
if not redis.acl_check_cmd('XACK', key, group, id) then
  return redis.error_reply('NOPERM this user may not XACK ' .. key)
end
redis.call('XADD', output, '*', 'data', ARGV[3], 'src', id, 'hash', ARGV[4], unpack(ARGV, 5))
redis.call('XACK', key, group, id)
redis.call('ZREM', parked, id)
redis.call('HDEL', attempts, id)
redis.call('HDEL', redrives, id)
redis.call('HINCRBY', totals, 'enriched', 1)
return 'ok'
