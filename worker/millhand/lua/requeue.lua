#!lua
-- requeue: give a dead letter's event to the workers again, as a new entry with the original fields byte for byte.
--
-- KEYS   1 dead_letter  2 input  3 redrives  4 totals  5 closed  6 marker of the event's event_id, if it has one
-- ARGV   1 id of the dead letter  2 how often an event may be requeued, or -1
-- answer {'ok', id of the new entry}
--        {'gone'}      no such dead letter: requeued or dropped before, perhaps by this call's lost predecessor
--        {'refused'}   requeued as often as it may be
--        {'empty'}     a tombstone: there is no event to requeue
--        {'too_wide'}  more fields than can be written in one go
--        {'foreign'}   no record that bury writes
--
-- Without allow-oom, because it adds work: a server that is full refuses it. XADD stands before XDEL: an XADD that fails
-- leaves the dead letter. Whatever else could fail after XADD (a wrong type, a permission) is asked before, for else every
-- call would write once more. A marker that is there goes to the new entry, which would be a repetition of the old one
-- otherwise. `closed` remembers that the old entry needs no record any more. Safe to send again.
local PAIRS_MAX = 20000  -- an eighth of a second; that grows with the square
local UNPACKED_MAX = 7000  -- Lua unpacks at most 8000 values onto its stack
local dead_letter, input, redrives, totals, closed, marker = unpack(KEYS)
local id, redrives_max = ARGV[1], tonumber(ARGV[2])

-- The value of the last pair of a name: ours stand behind the original's, which may have the same names.
local function last(record, name, first)
  for i = #record - 1, first, -2 do
    if record[i] == name then
      return record[i + 1]
    end
  end
  return nil
end

-- The original pairs, and how often they have been requeued; nil where the record is none of bury's.
local function read(record)
  local pairs_count = tonumber(last(record, 'original_fields', 1))
  if pairs_count and record[2 * pairs_count + 1] == 'failure_reason' then
    local original = {}
    for i = 1, 2 * pairs_count do
      original[i] = record[i]
    end
    return original, tonumber(last(record, 'redrives', 2 * pairs_count + 1)) or 0
  end
  if pairs_count and record[1] == 'original_msgpack' and record[3] == 'failure_reason' then
    local unpacked, original = pcall(cmsgpack.unpack, record[2])
    if unpacked and type(original) == 'table' and #original == 2 * pairs_count then
      return original, tonumber(last(record, 'redrives', 3)) or 0
    end
  end
  return nil
end

-- XADD of any number of values: what is too much for `unpack` goes before the rest in small pieces, since Lua passes on
-- `...` without a limit.
local function add(t, n, ...)
  if n == 0 then
    return redis.call('XADD', input, '*', ...)
  end
  return add(t, n - 20, t[n-19], t[n-18], t[n-17], t[n-16], t[n-15], t[n-14], t[n-13], t[n-12], t[n-11], t[n-10],
    t[n-9], t[n-8], t[n-7], t[n-6], t[n-5], t[n-4], t[n-3], t[n-2], t[n-1], t[n], ...)
end

local entry = redis.call('XRANGE', dead_letter, id, id)[1]
if not entry then
  return {'gone'}
end
local original, redriven = read(entry[2])
if not original then
  return {'foreign'}
elseif #original == 0 then
  return {'empty'}
elseif #original > 2 * PAIRS_MAX then
  return {'too_wide'}
elseif redrives_max >= 0 and redriven >= redrives_max then
  return {'refused'}
end

redis.call('HLEN', redrives)
redis.call('HLEN', totals)
redis.call('ZCARD', closed)
local src = last(entry[2], 'src', 1)
local has_marker = marker and redis.call('EXISTS', marker) == 1
local to_come = {{'XDEL', dead_letter, id}, {'HSET', redrives, id, 1}, {'HINCRBY', totals, 'requeued', 1},
  {'ZADD', closed, 0, id}}
if has_marker then
  to_come[#to_come + 1] = {'SET', marker, id, 'KEEPTTL'}
end
for _, command in ipairs(to_come) do
  if not redis.acl_check_cmd(unpack(command)) then
    return redis.error_reply('NOPERM this user may not ' .. command[1] .. ' ' .. command[2])
  end
end

local pieces = 20 * math.ceil(math.max(0, #original - UNPACKED_MAX) / 20)
local new_id = add(original, pieces, unpack(original, pieces + 1))
redis.call('HSET', redrives, new_id, redriven + 1)
if has_marker then
  redis.call('SET', marker, new_id, 'KEEPTTL')
end
if src then
  redis.call('ZADD', closed, string.match(src, '^%d+') or 0, src)
end
redis.call('XDEL', dead_letter, id)
redis.call('HINCRBY', totals, 'requeued', 1)
return {'ok', new_id}
