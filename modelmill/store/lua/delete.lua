#!lua flags=allow-oom
-- Removes a job and all that belongs to it. ARGV: result ttl ms, then ids
-- A job that waits is canceled first. One that runs is asked to cancel, cannot be seen any more, and goes with
-- its end. Returns {verdicts, ends to log}, a verdict being missing; deleted; or deleting.
local now, ttl_ms = now_ms(), tonumber(ARGV[1])
local verdicts = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local job = redis.call('HMGET', K.job .. id, 'status', 'finished_ms', 'caller', 'gone')
  local verdict = 'deleted'
  if not job[1] or job[4] then
    verdict = 'missing'
  elseif job[2] then
    forget(id, now)
  else
    redis.call('HSET', K.job .. id, 'cancel', '1', 'gone', '1')
    redis.call('ZREM', K.jobs .. job[3], id)
    if redis.call('ZSCORE', K.leases, id) then
      verdict = 'deleting'
      table.insert(ended, id .. ' canceled')
    else
      close(id, now, ttl_ms, 'canceled')
    end
  end
  table.insert(verdicts, verdict)
end
return told({verdicts, unlogged})
