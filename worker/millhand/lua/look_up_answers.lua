#!lua
-- look_up_answers: find the answers to many questions at once. Nobody is said to ask what is not found.
--
-- KEYS   1 answers  2 answer_times  3 totals
-- ARGV   1 ms for which an answer is good  2... a question, how many ask it, a question, ...
-- answer for each question the answer, or nil
--
-- Without allow-oom and with the age held against this caller's limit, as in look_up_answer. What is found is counted for
-- all who ask; what is not found is looked for again by those who go on to ask, and counted there.
local answers, times, totals = unpack(KEYS)
local ttl = tonumber(ARGV[1])
local questions = {}
for i = 2, #ARGV, 2 do
  questions[#questions + 1] = ARGV[i]
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept_at = redis.call('ZMSCORE', times, unpack(questions))
local found = redis.call('HMGET', answers, unpack(questions))
local hits = 0
for i = 1, #questions do
  if found[i] and kept_at[i] and now - tonumber(kept_at[i]) < ttl then
    hits = hits + tonumber(ARGV[2 * i + 1])
  else
    found[i] = false
  end
end
if hits > 0 then
  redis.call('HINCRBY', totals, 'cache_hits', hits)
end
return found
