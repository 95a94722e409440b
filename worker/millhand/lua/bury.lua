#!lua flags=allow-oom
-- bury: copy an entry to the dead letters, byte for byte, and acknowledge it. Strict: only for the (owner, count) that
-- holds it now, because a zombie's "it failed" must not overrule a living worker's "not yet".
--
-- KEYS   1 input  2 dead_letter  3 parked  4 attempts  5 redrives  6 totals
-- ARGV   1 group  2 id  3 owner  4 count  5 failure_reason  6... further fields and values of the record
-- answer 'ok'    buried
--        'gone'  no longer pending: settled before
--        'lost'  pending in other hands
--
-- The original fields come first and in their order, ours after them: whoever reads the record as a map sees our
-- failure_reason, even if the original had a field of that name; `original_fields` says how many pairs are the original's.
-- An entry with more fields than one call can carry is packed into one, `original_msgpack`.
-- XADD stands before XACK, and the permission is asked first, as in finish. Safe to send again.
local PAIRS_MAX = 3500  -- Lua unpacks at most 8000 values onto its stack
local key, dead_letter, parked, attempts, redrives, totals = unpack(KEYS)
local group, id, owner, count, reason = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]

local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
if not pending then
  return 'gone'
end
if pending[2] ~= owner or pending[4] ~= count then
  return 'lost'
end

local entry = redis.call('XRANGE', key, id, id)[1]
local record = entry and entry[2] or {}
local pairs_count = #record / 2
if pairs_count > PAIRS_MAX then
  record = {'original_msgpack', cmsgpack.pack(record)}
end
local redriven = redis.call('HGET', redrives, id) or 0
local ours = {'failure_reason', reason, 'src', id, 'original_fields', pairs_count, 'redrives', redriven, unpack(ARGV, 6)}
for _, value in ipairs(ours) do
  record[#record + 1] = value
end
if not redis.acl_check_cmd('XACK', key, group, id) then
  return redis.error_reply('NOPERM this user may not XACK ' .. key)
end
redis.call('XADD', dead_letter, '*', unpack(record))
redis.call('XACK', key, group, id)
redis.call('ZREM', parked, id)
redis.call('HDEL', attempts, id)
redis.call('HDEL', redrives, id)
redis.call('HINCRBY', totals, 'dead', 1)
redis.call('HINCRBY', totals, 'dead:' .. reason, 1)
return 'ok'
