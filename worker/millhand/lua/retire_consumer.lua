#!lua flags=allow-oom
-- retire_consumer: forget a consumer that holds nothing. XGROUP DELCONSUMER alone would destroy what it holds.
--
-- KEYS   1 input  2 totals
-- ARGV   1 group  2 consumer
-- answer 'ok'    forgotten
--        'lost'  it still holds something
--        'gone'  there is none of that name
--
-- Safe to send again.
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 'lost'
end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  if consumer[2] == ARGV[2] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    redis.call('HINCRBY', KEYS[2], 'retired', 1)
    return 'ok'
  end
end
return 'gone'
