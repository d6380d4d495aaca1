#!lua flags=allow-oom
-- Removes jobs with all that belongs to them. Each group names one job.
-- A queued job is canceled first. A running job is asked to cancel and cannot be read from now on; its end removes it.
-- Returns {verdicts, unreported ends}. A verdict is one of `Deletion` in records.py.
local now = now_ms()
local verdicts = {}
for i = FIRST, #ARGV do
  local id = ARGV[i]
  local status, finished_ms, caller, gone = read(K.job .. id, 'status', 'finished_ms', 'caller', 'gone')
  local verdict = 'deleted'
  if not status or gone then
    verdict = 'missing'
  elseif finished_ms then
    forget(id, now)
  else
    redis.call('HSET', K.job .. id, 'cancel', '1', 'gone', '1')
    redis.call('ZREM', K.jobs .. caller, id)
    if redis.call('ZSCORE', K.leases, id) then
      verdict = 'deleting'
      table.insert(ended, id .. ' canceled')
    else
      end_unreported(id, now, result_ttl_ms, 'canceled')
    end
  end
  table.insert(verdicts, verdict)
end
return publish({verdicts, unreported})
