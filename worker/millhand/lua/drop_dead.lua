#!lua flags=allow-oom
-- drop_dead: delete dead letters for good.
--
-- KEYS   1 dead_letter  2 totals  3 closed
-- ARGV   1... ids
-- answer how many were there to delete
--
-- `closed` remembers that their events need no record, should the group ever have to be put back from the records.
-- Safe to send again.
local dead_letter, totals, closed = unpack(KEYS)
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', dead_letter, id, id)[1]
  local record = entry and entry[2] or {}
  for i = #record - 1, 1, -2 do
    if record[i] == 'src' then
      redis.call('ZADD', closed, string.match(record[i + 1], '^%d+') or 0, record[i + 1])
      break
    end
  end
end
local dropped = redis.call('XDEL', dead_letter, unpack(ARGV))
redis.call('HINCRBY', totals, 'dropped', dropped)
return dropped
