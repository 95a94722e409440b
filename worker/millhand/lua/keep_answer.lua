#!lua
-- keep_answer: keep the answer to a question, and end the asking for it.
--
-- KEYS   1 answers  2 answer_times  3 asking: the marker of this question
-- ARGV   1 question  2 who asked  3 the answer  4 ms for which an answer is good  5 how many are kept at most
-- answer how many are kept
--
-- Without allow-oom: a full server keeps what it is there for, the events, and no more answers.
-- A late answer is as good as another, so it is kept though its marker has run out; the marker that a successor has set
-- since then is left alone.
-- At most two go for one that comes: so there are never too many, old ones go even if there is room, and no call is long.
-- The two keys expire together once nothing is added. If one was deleted or evicted alone, both begin anew: what has no
-- time would never go.
local GONE_PER_CALL = 2
local answers, times, asking = unpack(KEYS)
local question, asker, ttl, most = ARGV[1], ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])

if redis.call('HLEN', answers) ~= redis.call('ZCARD', times) then
  redis.call('UNLINK', answers, times)
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', answers, question, ARGV[3])
redis.call('ZADD', times, now, question)
for _ = 1, GONE_PER_CALL do
  local oldest = redis.call('ZRANGE', times, 0, 0, 'WITHSCORES')
  if redis.call('ZCARD', times) > most or now - tonumber(oldest[2]) >= ttl then
    redis.call('ZREM', times, oldest[1])
    redis.call('HDEL', answers, oldest[1])
  end
end
redis.call('PEXPIRE', answers, ARGV[4])
redis.call('PEXPIRE', times, ARGV[4])
if redis.call('GET', asking) == asker then
  redis.call('DEL', asking)
end
return redis.call('ZCARD', times)
