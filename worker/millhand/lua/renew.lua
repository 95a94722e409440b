#!lua flags=allow-oom
-- renew: keep the leases of the entries that a consumer has in hand, by resetting their idle time.
--
-- KEYS   1 input
-- ARGV   1 group  2 consumer  3... id, count, id, count, ...
-- answer the ids that are this consumer's no longer
--
-- Only the ids named here: what was delivered in a reply that never arrived is in nobody's hand, and must grow idle.
-- A deleted entry is left alone: XCLAIM would drop it from the pending list. Safe to send again.
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local lost = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
  if not pending or pending[2] ~= consumer or pending[4] ~= tonumber(ARGV[i + 1]) then
    lost[#lost + 1] = id
  elseif #redis.call('XRANGE', key, id, id) == 1 then
    redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID')
  end
end
return lost
