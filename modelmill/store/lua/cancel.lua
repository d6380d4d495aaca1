#!lua flags=allow-oom
-- Cancels a job.
-- Returns {verdict, unreported ends}. The verdict is one of `Cancellation` in records.py: missing; canceled (the
-- job was queued); requested (the job runs, and its worker will see the request); or the status of its end.
local status, finished_ms = read(K.job .. id, 'status', 'finished_ms')
if not status then return {'missing', unreported} end
if finished_ms then return {status, unreported} end
if redis.call('ZSCORE', K.leases, id) then
  redis.call('HSET', K.job .. id, 'cancel', '1')
  return {'requested', unreported}
end
end_unreported(id, now_ms(), result_ttl_ms, 'canceled')
return publish({'canceled', unreported})
