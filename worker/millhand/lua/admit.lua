#!lua flags=allow-oom
-- admit: may a call to the model be made? In this order: pause, breaker, permit, token; all by the server's clock.
--
-- KEYS   1 gate  2 permits  3 input
-- ARGV   1 'look': is the gate shut?  'places': how many of these calls could begin soon, asked before events are read?
--          'read': the same, and new events are read for them  'call': this one begins, now or when its token is due
--        2 group  3 calls at once, a number or 'auto'  4 what that is before any call has been measured
--        5 us between two tokens, 0 = no rate  6 burst  7 ms until a permit expires, and a probe's lease
--        8 id of a permit: its consumer's name, a slash, and a number  9 calls; the next numbers are for the others
--        to read: 10 who does  11 events a call  12 events beyond those  13 ms, the latest time to do so
-- answer {granted, wait in ms, why, generation of the limit, ms over which those who wait are to be spread, what is
--         wrong in words, ms now, what was read}
--        granted > 0   the first so many hold a permit, except after a 'look'; a 'call' begins after the wait, for
--                      which it has its token
--        'paused' 'open' 'permit' 'rate'   nothing granted, and not to be asked again before the wait is over
--        'late'        nothing granted: whoever asked may not wait any more, and would not have what is read
--        'probe'       closed, and the holder of that id is the one to find out whether the model is back
--
-- gate   tat: when the bucket will be full again less its burst, in us (GCRA: ATM Forum TM 4.0, 1996, and its use with
--        reservations). queued_until: calls wait for a permit, and go before what is not yet read. pause_until, pause_ms.
--        open, kind, says, probe_at, probe_ms, prober, prober_until: the breaker. strikes, throttled_since. slow: calls
--        at once while the model is tried again. limit, generation, and what leave counts. wanting: calls in hand or
--        unread events want more permits than there are.
-- permits  id -> when it expires in ms, and `@opened` -> less the time from which new ones may be given out
--
-- A reader gets half of the permits that are free, so that one that waits for events leaves some to the others.
-- Whoever is refused gives the permit back, so that those who wait hold nothing that others could use.
-- Where the bucket is lost it begins with one token. Where the permits are lost while events are in hand, nobody gets
-- a new one until all have told again what they hold. A time too far ahead is a clock that was put back: now.
-- Not sent again as it was: whoever gets no answer gives these ids back, in a leave, and asks with new ones. A token may
-- be spent for nothing; what was read stays in the hands of its reader until the janitor finds it.
local REJOIN_MS, RESERVED_US_MAX, AHEAD_US, OPEN_POLL_MS, QUEUED_MS = 2500, 500000, 100000, 250, 500
local gate, permits, input = KEYS[1], KEYS[2], KEYS[3]
local how, group, at_once, untried = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local interval, burst, hold_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local id, wanted = ARGV[8], tonumber(ARGV[9])
local for_reading = how == 'places' or how == 'read'
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

local FIELDS = {'pause_until', 'pause_ms', 'tat', 'limit', 'generation', 'says', 'open', 'prober_until', 'probe_at',
  'probe_ms', 'slow', 'queued_until', 'wanting'}
local known = {}
for place, value in ipairs(redis.call('HMGET', gate, unpack(FIELDS))) do
  known[FIELDS[place]] = value
end

local function number(field)
  return tonumber(known[field] or 0)
end

local function refuse(wait_ms, why, spread_ms)
  redis.call('ZREM', permits, id)
  return {0, math.ceil(wait_ms), why, number('generation'), spread_ms or 0, known.says or '', now}
end

if how == 'read' and now > tonumber(ARGV[13]) then
  return refuse(1, 'late')
end

local function events_are_in_hand()
  local summary = redis.pcall('XPENDING', input, group)  -- an error where there is no group, and nothing in hand
  for _, row in ipairs(summary[4] or {}) do
    if row[1] ~= '@parked' then
      return true
    end
  end
  return false
end

local function events_are_unread()
  for _, row in ipairs(redis.pcall('XINFO', 'GROUPS', input)) do
    local about = {}
    for place = 1, #row, 2 do
      about[row[place]] = row[place + 1]
    end
    if about.name == group then
      return #redis.call('XRANGE', input, '(' .. about['last-delivered-id'], '+', 'COUNT', 1) > 0
    end
  end
  return false
end

-- tell `leave` whether it is the limit that holds calls back
local function note_short(is_short)
  if at_once ~= 'auto' then
    return
  end
  local wanting = is_short and (how == 'call' or events_are_unread())
  if wanting and not known.wanting then
    redis.call('HSET', gate, 'wanting', 1)
  elseif known.wanting and not wanting then
    redis.call('HDEL', gate, 'wanting')
  end
end

local opened = redis.call('ZSCORE', permits, '@opened')
opened = opened and -tonumber(opened)
if not opened or opened > now + REJOIN_MS then
  opened = not opened and events_are_in_hand() and now + REJOIN_MS or 1
  redis.call('ZADD', permits, -opened, '@opened')
end
redis.call('ZREMRANGEBYSCORE', permits, 1, now)

local pause_left, pause_ms = number('pause_until') - now, number('pause_ms')
if pause_left > pause_ms then
  pause_left = pause_ms
  redis.call('HSET', gate, 'pause_until', now + pause_left)
end
if pause_left > 0 then
  return refuse(pause_left, 'paused', pause_ms / 10)
end

-- the token: `tat` moves on by one interval a call; a call may begin `burst - 1` intervals before it
local tolerance = (burst - 1) * interval
local tat = tonumber(known.tat or now_us + tolerance)
if tat - tolerance > now_us + RESERVED_US_MAX + interval then
  tat = now_us + tolerance
end
local token_wait = interval > 0 and math.max(0, tat - tolerance - now_us) or 0
local function take_token()
  if interval > 0 then
    redis.call('HSET', gate, 'tat', math.max(now_us, tat) + interval)
  end
end

local limit = at_once == 'auto' and tonumber(known.limit or untried) or tonumber(at_once)
local in_use = redis.call('ZCARD', permits) - 1

if known.open then
  local prober_left, probe_in = number('prober_until') - now, number('probe_at') - now
  if prober_left > 0 and prober_left <= hold_ms then
    return refuse(math.min(prober_left, OPEN_POLL_MS), 'open')
  end
  if probe_in > 0 and probe_in <= number('probe_ms') then
    return refuse(probe_in, 'open')
  end
  if token_wait > 0 or in_use >= limit then
    return refuse(math.max(token_wait / 1000, OPEN_POLL_MS), 'open')
  end
  take_token()
  redis.call('HSET', gate, 'prober', id, 'prober_until', now + hold_ms)
  redis.call('ZADD', permits, now + hold_ms, id)
  return {0, 0, 'probe', number('generation'), 0, known.says or '', now}
end

if how == 'look' then
  return {1, 0, '', number('generation'), 0, '', now}
end

local slow = tonumber(known.slow or limit)
local free = opened > now and 0 or math.min(limit, slow) - in_use
if how == 'call' and redis.call('ZSCORE', permits, id) then
  free = 1
end
local queued = number('queued_until') - now
if for_reading and queued > 0 and queued <= QUEUED_MS then
  free = 0
end
if free < 1 then
  note_short(true)
  if how == 'call' then
    redis.call('HSET', gate, 'queued_until', now + QUEUED_MS)
  end
  return refuse(math.max(0, opened - now), 'permit')
end

local granted = 1
if for_reading then
  granted = math.min(math.ceil(math.floor(free) / 2), wanted)
  note_short(granted < wanted)
  if interval > 0 then
    granted = math.min(granted, math.floor((now_us + AHEAD_US + tolerance - math.max(tat, now_us)) / interval) + 1)
    if granted < 1 then
      return refuse((token_wait - AHEAD_US) / 1000, 'rate')
    end
  end
  token_wait = 0
else
  if token_wait > RESERVED_US_MAX then
    return refuse(token_wait / 1000, 'rate')
  end
  take_token()
end
local owner, number_of_first = string.match(id, '^(.*/)(%d+)$')
local held = {}
for place = 1, granted do
  held[2 * place - 1] = now + hold_ms + math.ceil(token_wait / 1000)
  held[2 * place] = owner .. string.format('%d', number_of_first + place - 1)
end
redis.call('ZADD', permits, unpack(held))
local read = {}
if how == 'read' then
  local count = granted * ARGV[11] + ARGV[12]
  local streams = redis.call('XREADGROUP', 'GROUP', group, ARGV[10], 'COUNT', count, 'STREAMS', input, '>')
  read = streams and streams[1][2] or {}
end
return {granted, math.ceil(token_wait / 1000), '', number('generation'), 0, '', now, read}
