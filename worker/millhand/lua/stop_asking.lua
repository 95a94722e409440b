#!lua flags=allow-oom
-- stop_asking: say that a question is not asked any more, so that the next who looks asks it. Only the asker's own word.
--
-- KEYS   1 asking: the marker of the question
-- ARGV   1 who asked
-- answer 1 if it was theirs, else 0
--
-- With allow-oom: it adds nothing, and where an answer could not be kept the others must not wait. Safe to send again.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
