#!lua flags=no-writes
-- count_after: count a stretch of a stream on the server, a page at a time, so that no payload travels.
--
-- KEYS   1 stream
-- ARGV   1 exclusive start id  2 inclusive end id ('+' = the newest)  3 page size
-- answer {entries in the page, id of the page's last entry or '' when it is empty}
local page = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], ARGV[2], 'COUNT', ARGV[3])
return {#page, #page > 0 and page[#page][1] or ''}
