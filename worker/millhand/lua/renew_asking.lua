#!lua flags=allow-oom
-- renew_asking: keep the markers of the questions that a process is still asking.
--
-- KEYS   1... asking: the marker of each question
-- ARGV   1 ms for which a marker lasts  2... who asks, for each marker
-- answer how many are still theirs
--
-- A marker that is gone is not put back: by now somebody else may have begun. It adds nothing. Safe to send again.
local kept = 0
for place, asking in ipairs(KEYS) do
  if redis.call('GET', asking) == ARGV[place + 1] then
    kept = kept + redis.call('PEXPIRE', asking, ARGV[1])
  end
end
return kept
