#!lua flags=allow-oom
-- trim: delete from the input what every group of the stream has acknowledged, a bounded piece at a time.
--
-- KEYS   1 input  2 totals  3 closed
-- ARGV   1 ms for which a finished entry is kept, by the time in its id  2 entries to delete at most (about)
-- answer the number of deleted entries; 0 when there is nothing left to delete
--
-- Computed and applied in one script, so that no group can be created or fall back in between. What a group has not yet
-- delivered, or has pending, bounds the trim: XTRIM itself would delete that too, without a word. A stream without a
-- group is left alone. Safe to send again.
local key, totals, closed, keep_ms, limit = KEYS[1], KEYS[2], KEYS[3], tonumber(ARGV[1]), ARGV[2]
local SEQUENCE_MAX = 2 ^ 53  -- beyond it Lua cannot count one further; such an entry is kept

local function split(id)
  return string.match(id, '^(%d+)-(%d+)$')
end

local function is_less(a, b)  -- of two numbers in decimal, which may have 64 bits
  return #a < #b or (#a == #b and a < b)
end

local function earlier(a, b)
  local a_ms, a_seq = split(a)
  local b_ms, b_seq = split(b)
  if a_ms == b_ms then
    return is_less(a_seq, b_seq) and a or b
  end
  return is_less(a_ms, b_ms) and a or b
end

local function after(id)
  local ms, seq = split(id)
  return tonumber(seq) < SEQUENCE_MAX and string.format('%s-%.0f', ms, tonumber(seq) + 1) or id
end

if redis.call('EXISTS', key) == 0 then
  return 0
end
local groups = redis.call('XINFO', 'GROUPS', key)
if #groups == 0 then
  return 0
end
local time = redis.call('TIME')
local first_kept = string.format('%.0f-0', math.max(0, time[1] * 1000 + math.floor(time[2] / 1000) - keep_ms))
for _, fields in ipairs(groups) do
  local group = {}
  for i = 1, #fields, 2 do
    group[fields[i]] = fields[i + 1]
  end
  first_kept = earlier(first_kept, after(group['last-delivered-id']))
  if group['pending'] > 0 then
    first_kept = earlier(first_kept, redis.call('XPENDING', key, group['name'])[2])
  end
end
local trimmed = redis.call('XTRIM', key, 'MINID', '~', first_kept, 'LIMIT', limit)
if trimmed == 0 then  -- what is left is less than one of the stream's nodes
  trimmed = redis.call('XTRIM', key, 'MINID', '=', first_kept)
end
if trimmed > 0 then
  redis.call('HINCRBY', totals, 'trimmed', trimmed)
  local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  local until_ms = oldest and '(' .. split(oldest[1]) or '+inf'
  redis.call('ZREMRANGEBYSCORE', closed, '-inf', until_ms)  -- what is no longer in the input needs no remembering
end
return trimmed
