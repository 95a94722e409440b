#!lua
-- look_up_answer: find the answer to a question, or say who asks the model for it: whoever looks first.
--
-- KEYS   1 answers  2 answer_times  3 asking: the marker of this question  4 totals
-- ARGV   1 question  2 who looks  3 ms for which an answer is good  4 ms for which a marker lasts
--        5 'first', 'again' after a wait, or 'alone' to wait no more
-- answer {'found', the answer}
--        {'ask', ''}        ask the model; unless somebody else does too, the marker says so from now on
--        {'wait', who asks} somebody else asks: look again soon
--
-- Without allow-oom: a full server refuses it, and the event is asked about without the cache, before and after a wait.
-- The age is held against this caller's limit, so that a shorter one holds for what is kept already.
-- Each look that ends is counted once; sent again, 'ask' is answered as before.
local answers, times, asking, totals = unpack(KEYS)
local question, looker, ttl, how = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[5]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept_at = redis.call('ZSCORE', times, question)
local answer = kept_at and now - tonumber(kept_at) < ttl and redis.call('HGET', answers, question)
if answer then
  redis.call('HINCRBY', totals, how == 'first' and 'cache_hits' or 'cache_joined', 1)
  return {'found', answer}
end

local asker = redis.call('GET', asking)
local is_free = not asker or asker == looker
if not is_free and how ~= 'alone' then
  return {'wait', asker}
end
if is_free then
  redis.call('SET', asking, looker, 'PX', ARGV[4])
end
redis.call('HINCRBY', totals, 'cache_misses', 1)
return {'ask', ''}
