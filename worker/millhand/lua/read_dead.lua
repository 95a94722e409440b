#!lua flags=no-writes
-- read_dead: read a page of dead letters pair by pair, since the names of an original's fields may repeat.
--
-- KEYS   1 dead_letter
-- ARGV   1 start  2 end, both as XRANGE takes them  3 entries at most  4 bytes after which the page ends
-- answer {{id, {field, value, ...}, {field, value, ... of a packed original}}, ...}
--
-- One by one, because an entry may have any size: a page that is asked for by its length alone could fill the memory.
local start, bytes, page = ARGV[1], 0, {}
while #page < tonumber(ARGV[3]) and bytes < tonumber(ARGV[4]) do
  local entry = redis.call('XRANGE', KEYS[1], start, ARGV[2], 'COUNT', 1)[1]
  if not entry then
    break
  end
  local id, record = entry[1], entry[2]
  for _, part in ipairs(record) do
    bytes = bytes + #part
  end
  local packed, original = record[1] == 'original_msgpack' and record[3] == 'failure_reason', nil
  if packed then
    packed, original = pcall(cmsgpack.unpack, record[2])
  end
  page[#page + 1] = {id, record, packed and type(original) == 'table' and original or {}}
  start = '(' .. id
end
return page
