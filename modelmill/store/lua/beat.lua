#!lua flags=allow-oom
-- Extends leases. Each group names one claimed job; its `progress` is JSON, or empty.
-- Returns {lost ids, ids to cancel}. A lost job has ended or is leased to another claim.
local now = now_ms()
local lost, cancels, renewed = {}, {}, {}
for i = FIRST, #ARGV, STEP do
  local claimed = group(i)
  local id, key = claimed.id, K.job .. claimed.id
  local fence, cancel, hook_events = read(key, 'fence', 'cancel', 'hook_events')
  if fence == claimed.fence and redis.call('ZSCORE', K.leases, id) then
    redis.call('ZADD', K.leases, now + lease_ms, id)
    if not renewed[fence] then
      -- The list of a claim must live as long as one of its jobs is leased.
      redis.call('PEXPIRE', K.claim .. fence, lease_ms * 6)
      renewed[fence] = true
    end
    if claimed.progress ~= '' then
      redis.call('HSET', key, 'progress', claimed.progress)
      add_event(id, 'progress', claimed.progress)
      queue_webhook(id, hook_events, 'progress', now + 500)
    end
    if cancel then table.insert(cancels, id) end
  else
    table.insert(lost, id)
  end
end
return publish({lost, cancels})
