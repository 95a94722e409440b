#!lua flags=allow-oom
-- claim_event_id: say which entry has an event_id: the first that asks, for as long as the window lasts.
--
-- KEYS   1 marker of the event_id
-- ARGV   1 id of the entry that asks  2 window in ms
-- answer the id of the entry that has it
--
-- With allow-oom, since what is in hand must end although memory is full. Safe to send again.
local first = redis.call('GET', KEYS[1])
if first then
  return first
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
