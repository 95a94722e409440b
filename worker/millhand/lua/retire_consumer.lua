#!lua flags=allow-oom
-- retire_consumer: forget a consumer that holds nothing. XGROUP DELCONSUMER alone would destroy what it holds.
--
-- KEYS   1 input
-- ARGV   1 group  2 consumer
-- answer 'ok'    forgotten
--        'lost'  it still holds something
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 'lost'
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 'ok'
