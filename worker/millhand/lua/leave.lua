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
-- the queue measured by the model itself instead of inferred from round trips): more while fewer wait than a tenth of it,
-- or half a call; as many less as wait too many; three quarters after a refusal or a time-out. Those that wait keep the
-- model at work while what it has answered is settled and the next is read, which comes in batches.
-- It grows only where it is what holds calls back (as a congestion window does: RFC 7661), which admit tells by
-- `wanting`; so it ends a little above what the workers together would take. Each step is judged by calls that began
-- after it, and there are as many as the limit while it doubles, later twice as many.
-- What is measured: calls, their `wall_us`, of that `queue_us` in the model's queue, `busy_us` in which calls were under
-- way, and of that `wanting_us`; an idle hour between two bursts counts for nothing.
-- A model may leave work out of what it accounts for (Ollama the sampling), which then looks like waiting. The share of it
-- is `base`, as the base round trip of Vegas: the least that a whole measurement has shown; only what goes beyond it
-- counts. Where calls seem to wait, at first and then every so many `measurements`, the limit is a quarter for one of
-- them, in which none can, and the base is learnt anew (N. Cardwell et al., "BBR", 2016: ProbeRTT). Without that a base
-- too low would last for ever, and one that crept up by itself would take a lasting queue for work. `whole` is the limit
-- to go back to.
-- A call that began before the gate was last shut says nothing of how the model does since: `generation` and `shut` tell.
-- Sent again after a lost reply it counts the calls once more: a strike too many is one failed probe's wait.
-- What is known of the gate is read once and written once, however many calls there are to tell of.
local FIELDS, AUTO_MAX, CUT, WANTING_SHARE, QUEUE_MIN, QUEUE_SHARE = 7, 1024, 0.75, 0.5, 0.5, 0.1
local CALLS_MIN, BASE_CALLS_MIN, BASE_SHARE, BASE_EVERY, BASE_MAX = 8, 4, 0.25, 64, 0.5
local gate, permits = KEYS[1], KEYS[2]
local at_once, untried, strikes_max, throttled_max_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local first_ms, longest_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local came_about, wait_ms = '', 0

-- what is known

local known, changed = {}, {}
local pairs_known = redis.call('HGETALL', gate)
for place = 1, #pairs_known, 2 do
  known[pairs_known[place]] = pairs_known[place + 1]
end

local function number(field)
  return tonumber(known[field] or 0)
end

local function set(field, value)
  known[field], changed[field] = value, true
end

local function add(field, value)
  set(field, number(field) + value)
  return known[field]
end

local function drop(...)
  local dropped = false
  for _, field in ipairs({...}) do
    if known[field] then
      set(field, nil)
      dropped = true
    end
  end
  return dropped
end

local function write()
  local to_set, to_drop = {}, {}
  for field in pairs(changed) do
    if known[field] then
      table.insert(to_set, field)
      table.insert(to_set, known[field])
    else
      table.insert(to_drop, field)
    end
  end
  if #to_set > 0 then
    redis.call('HSET', gate, unpack(to_set))
  end
  if #to_drop > 0 then
    redis.call('HDEL', gate, unpack(to_drop))
  end
end

local function limit()
  return at_once == 'auto' and tonumber(known.limit or untried) or tonumber(at_once)
end

-- the breaker

local measured = {calls = 0, wall_us = 0, queue_us = 0, longest_us = 0}

local function begin_measuring()
  measured = {calls = 0, wall_us = 0, queue_us = 0, longest_us = 0}
  set('counted', 0)
  set('wall_us', 0)
  set('queue_us', 0)
  set('busy_us', 0)
  set('wanting_us', 0)
end

local function begin_generation()
  begin_measuring()
  return add('generation', 1)
end

local function open(kind, says, asked_ms)
  local again = known.open
  local probe_ms = again and math.min(2 * number('probe_ms'), longest_ms) or first_ms
  probe_ms = math.max(probe_ms, asked_ms)
  set('kind', kind)
  set('says', says)
  set('probe_ms', probe_ms)
  set('probe_at', now + probe_ms)
  if not again then
    set('open', now)
    set('shut', begin_generation())
    came_about, wait_ms = 'open', probe_ms
  end
end

local function close()
  drop('open', 'kind', 'says', 'probe_ms', 'probe_at')
  set('slow', 1)
  came_about = 'closed'
end

local function pause(is_prober, asked_ms, says)
  local since = number('throttled_since')
  if since == 0 or since > now then
    since = now
    set('throttled_since', since)
  end
  local left, before = number('pause_until') - now, number('pause_ms')
  local length = asked_ms
  if length < 0 then
    if left > 0 and left <= before then
      return
    end
    length = math.min(math.max(2 * number('unasked_ms'), first_ms), longest_ms)
    set('unasked_ms', length)
  end
  if known.open and not is_prober then
    return
  end
  if is_prober or now - since >= throttled_max_ms then
    open('throttled', says, length)
  elseif length > left then
    set('pause_until', now + length)
    set('pause_ms', length)
    set('says', says)
    set('slow', 1)
    set('shut', begin_generation())
    came_about, wait_ms = 'paused', length
  end
end

-- the limit

local function set_limit(value, doubling)
  set('limit', math.max(1, math.min(value, AUTO_MAX)))
  set('doubling', doubling)
  begin_generation()
end

local function cut(generation)
  if at_once == 'auto' and generation == number('generation') then
    local whole = tonumber(known.whole or limit())
    drop('whole')
    set_limit(math.floor(whole * CUT), 0)
  end
end

local function measure(wall_us, queue_us, generation)
  if at_once == 'auto' and generation == number('generation') then
    measured.calls = measured.calls + 1
    measured.wall_us = measured.wall_us + wall_us
    measured.queue_us = measured.queue_us + queue_us
    measured.longest_us = math.max(measured.longest_us, wall_us)
  end
end

local function count_in()
  local busy_us = now_us - number('left_us')
  if busy_us < 0 or busy_us > measured.longest_us then
    busy_us = measured.longest_us
  end
  set('left_us', now_us)
  add('counted', measured.calls)
  add('wall_us', measured.wall_us)
  add('queue_us', measured.queue_us)
  add('busy_us', busy_us)
  add('wanting_us', known.wanting and busy_us or 0)
end

local function seek_base(now_limit, doubling)
  set('whole', now_limit)
  set_limit(math.floor(now_limit * BASE_SHARE), doubling)
end

local function learn_base(share, doubling)
  local whole = tonumber(known.whole)
  drop('whole')
  set('base', math.min(share, BASE_MAX))
  set('measurements', 0)
  set_limit(whole, doubling)
end

local function step()
  count_in()
  local now_limit, doubling = limit(), tostring(known.doubling) ~= '0' and 1 or 0
  local calls_min = math.max(CALLS_MIN, (2 - doubling) * now_limit)
  if number('counted') < (known.whole and math.max(BASE_CALLS_MIN, now_limit) or calls_min) then
    return
  end
  local share = number('queue_us') / math.max(1, number('wall_us'))
  if known.whole then
    return learn_base(share, doubling)
  end
  if share < number('base') then
    set('base', share)
  end
  local base, measurements = number('base'), tonumber(known.measurements or BASE_EVERY)
  local waiting = (number('queue_us') - base * number('wall_us')) / (1 - base) / math.max(1, number('busy_us'))
  local enough = math.max(QUEUE_MIN, QUEUE_SHARE * now_limit)
  if waiting >= enough and measurements >= BASE_EVERY then
    return seek_base(now_limit, doubling)
  end
  set('measurements', measurements + 1)
  if waiting > enough + math.max(1, enough) then
    set_limit(math.floor(now_limit - waiting + enough + 0.5), 0)
  elseif waiting < enough and number('wanting_us') >= WANTING_SHARE * number('busy_us') then
    set_limit(now_limit + (doubling == 1 and now_limit or 1), doubling)
  else
    begin_measuring()
  end
end

-- the calls

local function ok(is_prober, wall_us, queue_us, generation)
  local shut = known.open or number('pause_until') > now
  drop('strikes')
  if not shut then
    if drop('throttled_since') and came_about == '' then
      came_about = 'resumed'
    end
    drop('unasked_ms')
  end
  local slow = number('slow')
  if slow > 0 and not shut and generation == number('generation') then
    if 2 * slow >= limit() then
      drop('slow')
    else
      set('slow', 2 * slow)
    end
  end
  if is_prober then
    close()
    drop('throttled_since', 'unasked_ms')
  else
    measure(wall_us, queue_us, generation)
  end
end

local function strike(is_prober, says)
  local strikes = add('strikes', 1)
  if is_prober or (not known.open and strikes >= strikes_max) then
    open('away', says, 0)
  end
end

local ids = {}
for place = 7, #ARGV, FIELDS do
  local id, ended, wall_us, queue_us, generation, asked_ms, says = unpack(ARGV, place, place + FIELDS - 1)
  local is_prober = known.prober == id
  generation = tonumber(generation)
  table.insert(ids, id)
  if is_prober then
    drop('prober', 'prober_until')
  end
  if ended ~= 'unused' and ended ~= 'void' then
    add('calls:' .. ended, 1)
  end
  local is_stale = not is_prober and generation < number('shut')
  if ended == 'ok' then
    ok(is_prober, tonumber(wall_us), tonumber(queue_us), generation)
  elseif ended == 'strike' and not is_stale then
    strike(is_prober, says)
  elseif ended == 'late' and not is_stale then
    cut(generation)
    strike(is_prober, says)
  elseif ended == 'busy' and not is_stale then
    cut(generation)
    pause(is_prober, tonumber(asked_ms), says)
  elseif ended == 'refused' and (is_prober or not known.open) then
    open('misconfigured', says, 0)
  end
end
if measured.calls > 0 then
  step()
end
redis.call('ZREM', permits, unpack(ids))
write()
local state = known.open and 'open' or number('pause_until') > now and 'paused' or 'closed'
return {state, came_about, wait_ms, number('generation')}
