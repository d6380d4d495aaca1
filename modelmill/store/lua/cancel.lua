#!lua flags=allow-oom
-- Cancels a job. ARGV: id, result ttl ms
-- Returns {verdict, ends to log}: missing; canceled (it was queued); requested (it runs, its worker will see); or
-- the status it ended with.
local id = ARGV[1]
local job = redis.call('HMGET', K.job .. id, 'status', 'finished_ms')
if not job[1] then return {'missing', unlogged} end
if job[2] then return {job[1], unlogged} end
if redis.call('ZSCORE', K.leases, id) then
  redis.call('HSET', K.job .. id, 'cancel', '1')
  return {'requested', unlogged}
end
close(id, now_ms(), tonumber(ARGV[2]), 'canceled')
return told({'canceled', unlogged})
