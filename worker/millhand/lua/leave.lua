#!lua flags=allow-oom
-- leave: give permits back and say how the calls ended. Opens and closes the breaker, pauses, and finds the limit.
--
-- KEYS   1 gate  2 permits
-- ARGV   1 calls at once, a number or 'auto'  2 what that is before any call has been measured
--        3 failures in a row that open the breaker  4 ms of throttling that do
--        5 ms to the first probe, or of a pause where the model names none  6 ms to which both grow
--        7... a call each: id, how it ended, wall time in us, of it in the model's queue in us, generation of the limit
--        when it began, ms that the model asks to wait or -1, what is wrong in words
--        ended: 'ok' answered | 'strike' no connection, lost, 5xx | 'late' no answer in time | 'busy' turned away
--               'refused' not to be had as configured | 'unused' never made | 'void' ended by us
-- answer {'closed', 'paused' or 'open' now, what of that has just come about or '', ms until the end of the pause or the
--         first probe, generation}
--
-- The limit follows the number of calls that wait inside the model (L. S. Brakmo, L. L. Peterson, "TCP Vegas", 1995, with
-- the queue measured by the model itself instead of inferred from round trips): one more while less than half a call
-- waits, as many less as wait too many, three quarters after a refusal or a time-out. Each step is judged by calls that
-- began after it, and only where the limit was what held calls back.
-- A call that began before the gate was last shut says nothing of how the model does since: `generation` and `shut` tell.
-- Sent again after a lost reply it counts the calls once more: a strike too many is one failed probe's wait.
local FIELDS, AUTO_MAX, QUEUE_LOW, QUEUE_HIGH, BUSY_SHARE, CUT = 7, 1024, 0.5, 1.5, 0.75, 0.75
local CALLS_MIN = 8
local gate, permits = KEYS[1], KEYS[2]
local at_once, untried, strikes_max, throttled_max_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local first_ms, longest_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local came_about, wait_ms = '', 0

local function number(field)
  return tonumber(redis.call('HGET', gate, field) or 0)
end

local function limit()
  return at_once == 'auto' and tonumber(redis.call('HGET', gate, 'limit') or untried) or tonumber(at_once)
end

local function is_open()
  return redis.call('HEXISTS', gate, 'open') == 1
end

-- the breaker

local function begin_measuring()
  redis.call('HSET', gate, 'counted', 0, 'wall_us', 0, 'queue_us', 0, 'since_us', now_us)
  return redis.call('HINCRBY', gate, 'generation', 1)
end

local function open(kind, says, asked_ms)
  local again = is_open()
  local probe_ms = again and math.min(2 * number('probe_ms'), longest_ms) or first_ms
  probe_ms = math.max(probe_ms, asked_ms)
  redis.call('HSET', gate, 'kind', kind, 'says', says, 'probe_ms', probe_ms, 'probe_at', now + probe_ms)
  if not again then
    redis.call('HSET', gate, 'open', now, 'shut', begin_measuring())
    came_about, wait_ms = 'open', probe_ms
  end
end

local function close()
  redis.call('HDEL', gate, 'open', 'kind', 'says', 'probe_ms', 'probe_at')
  redis.call('HSET', gate, 'slow', 1)
  came_about = 'closed'
end

local function pause(is_prober, asked_ms, says)
  local since = number('throttled_since')
  if since == 0 or since > now then
    since = now
    redis.call('HSET', gate, 'throttled_since', since)
  end
  local left, before = number('pause_until') - now, number('pause_ms')
  local length = asked_ms
  if length < 0 then
    if left > 0 and left <= before then
      return
    end
    length = math.min(math.max(2 * number('unasked_ms'), first_ms), longest_ms)
    redis.call('HSET', gate, 'unasked_ms', length)
  end
  if is_open() and not is_prober then
    return
  end
  if is_prober or now - since >= throttled_max_ms then
    open('throttled', says, length)
  elseif length > left then
    redis.call('HSET', gate, 'pause_until', now + length, 'pause_ms', length, 'says', says, 'slow', 1,
      'shut', begin_measuring())
    came_about, wait_ms = 'paused', length
  end
end

-- the limit

local function set_limit(value, doubling)
  redis.call('HSET', gate, 'limit', math.max(1, math.min(value, AUTO_MAX)), 'doubling', doubling)
  begin_measuring()
end

local function cut(generation)
  if at_once == 'auto' and generation == number('generation') then
    set_limit(math.floor(limit() * CUT), 0)
  end
end

local function measure(wall_us, queue_us, generation)
  if at_once ~= 'auto' or generation ~= number('generation') then
    return
  end
  local counted = redis.call('HINCRBY', gate, 'counted', 1)
  local wall = redis.call('HINCRBY', gate, 'wall_us', wall_us)
  local queue = redis.call('HINCRBY', gate, 'queue_us', queue_us)
  local now_limit = limit()
  if counted < math.max(CALLS_MIN, 2 * now_limit) then
    return
  end
  local busy = wall / math.max(1, now_us - number('since_us'))
  local waiting = busy * queue / math.max(1, wall)
  local doubling = redis.call('HGET', gate, 'doubling') ~= '0'
  if waiting > QUEUE_HIGH then
    set_limit(math.floor(now_limit - waiting + 1), 0)
  elseif waiting < QUEUE_LOW and busy >= BUSY_SHARE * now_limit then
    set_limit(doubling and 2 * now_limit or now_limit + 1, doubling and 1 or 0)
  else
    redis.call('HSET', gate, 'counted', 0, 'wall_us', 0, 'queue_us', 0, 'since_us', now_us)
  end
end

-- the calls

local function ok(is_prober, wall_us, queue_us, generation)
  local shut = is_open() or number('pause_until') > now
  redis.call('HDEL', gate, 'strikes')
  if not shut then
    if redis.call('HDEL', gate, 'throttled_since') == 1 and came_about == '' then
      came_about = 'resumed'
    end
    redis.call('HDEL', gate, 'unasked_ms')
  end
  local slow = number('slow')
  if slow > 0 and not shut and generation == number('generation') then
    if 2 * slow >= limit() then
      redis.call('HDEL', gate, 'slow')
    else
      redis.call('HSET', gate, 'slow', 2 * slow)
    end
  end
  if is_prober then
    close()
    redis.call('HDEL', gate, 'throttled_since', 'unasked_ms')
  else
    measure(wall_us, queue_us, generation)
  end
end

local function strike(is_prober, says)
  local strikes = redis.call('HINCRBY', gate, 'strikes', 1)
  if is_prober or (not is_open() and strikes >= strikes_max) then
    open('away', says, 0)
  end
end

for place = 7, #ARGV, FIELDS do
  local id, ended, wall_us, queue_us, generation, asked_ms, says = unpack(ARGV, place, place + FIELDS - 1)
  local is_prober = redis.call('HGET', gate, 'prober') == id
  redis.call('ZREM', permits, id)
  if is_prober then
    redis.call('HDEL', gate, 'prober', 'prober_until')
  end
  if ended ~= 'unused' and ended ~= 'void' then
    redis.call('HINCRBY', gate, 'calls:' .. ended, 1)
  end
  local is_stale = not is_prober and tonumber(generation) < number('shut')
  if ended == 'ok' then
    ok(is_prober, wall_us, queue_us, tonumber(generation))
  elseif ended == 'strike' and not is_stale then
    strike(is_prober, says)
  elseif ended == 'late' and not is_stale then
    cut(tonumber(generation))
    strike(is_prober, says)
  elseif ended == 'busy' and not is_stale then
    cut(tonumber(generation))
    pause(is_prober, tonumber(asked_ms), says)
  elseif ended == 'refused' and (is_prober or not is_open()) then
    open('misconfigured', says, 0)
  end
end
local state = is_open() and 'open' or number('pause_until') > now and 'paused' or 'closed'
return {state, came_about, wait_ms, number('generation')}
