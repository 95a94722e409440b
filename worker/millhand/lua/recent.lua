#!lua flags=no-writes
-- recent: look at the newest entries of a stream: a few fields of each, cut short, so that no long payload travels.
--
-- KEYS   1 stream
-- ARGV   1 entries at most  2 bytes of a value at most  3... fields
-- answer {id, value or nil, ...} an entry, the newest first
--
-- Of fields with the same name the last counts, as for whoever reads an entry as a map.
local recent = {}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[1])) do
  local found = {}
  for place = 1, #entry[2], 2 do
    found[entry[2][place]] = entry[2][place + 1]
  end
  local row = {entry[1]}
  for place = 3, #ARGV do
    local value = found[ARGV[place]]
    row[#row + 1] = value and string.sub(value, 1, tonumber(ARGV[2])) or false
  end
  recent[#recent + 1] = row
end
return recent
