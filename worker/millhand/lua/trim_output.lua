#!lua flags=allow-oom
-- trim_output: delete from the output the records that nobody needs any more, a piece at a time; or only count them.
--
-- KEYS   1 output  2 input
-- ARGV   1 ms for which a record is kept, by the time in its id  2 records to look at  3 '' to delete; or an id, to
--        count behind it
-- answer {number of records, id of the last of them or '' when there is none}
--
-- While an event stands in the input its record is what says that it is done, if the group is ever lost: it stays. A
-- group that reads the output is waited for as in trim. Computed and applied in one script, so that neither changes in
-- between. Safe to send again.
local output, input, keep_ms, limit, start = KEYS[1], KEYS[2], tonumber(ARGV[1]), ARGV[2], ARGV[3]
local SEQUENCE_MAX = 2 ^ 53  -- beyond it Lua cannot count one further; such a record is kept

local function split(id)
  return string.match(id, '^(%d+)-(%d+)$')
end

local function is_less(a, b)  -- of two numbers in decimal, which may have 64 bits
  return #a < #b or (#a == #b and a < b)
end

local function is_earlier(a, b)
  local a_ms, a_seq = split(a)
  local b_ms, b_seq = split(b)
  return is_less(a_ms, b_ms) or (a_ms == b_ms and is_less(a_seq, b_seq))
end

local function after(id)
  local ms, seq = split(id)
  return tonumber(seq) < SEQUENCE_MAX and string.format('%s-%.0f', ms, tonumber(seq) + 1) or id
end

local function source_of(record)
  for i = 1, #record[2], 2 do
    if record[2][i] == 'src' and split(record[2][i + 1]) then
      return record[2][i + 1]
    end
  end
  return record[1]
end

if redis.call('EXISTS', output) == 0 then
  return {0, ''}
end
local time = redis.call('TIME')
local first_kept = string.format('%.0f-0', math.max(0, time[1] * 1000 + math.floor(time[2] / 1000) - keep_ms))
local function keep_from(id)
  if is_earlier(id, first_kept) then
    first_kept = id
  end
end
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', output)) do
  local group = {}
  for i = 1, #fields, 2 do
    group[fields[i]] = fields[i + 1]
  end
  keep_from(after(group['last-delivered-id']))
  if group['pending'] > 0 then
    keep_from(redis.call('XPENDING', output, group['name'])[2])
  end
end
local oldest = redis.call('XRANGE', input, '-', '+', 'COUNT', 1)[1]
local count, last = 0, ''
for _, record in ipairs(redis.call('XRANGE', output, start == '' and '-' or '(' .. start, '+', 'COUNT', limit)) do
  if not is_earlier(record[1], first_kept) or (oldest and not is_earlier(source_of(record), oldest[1])) then
    break
  end
  count, last = count + 1, record[1]
end
if start == '' and count > 0 then
  redis.call('XTRIM', output, 'MINID', '=', after(last))
end
return {count, last}
