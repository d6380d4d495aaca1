#!lua flags=allow-oom
-- Finished items of a batched job were written just before: publishes how many items are done.
local items, finished_ms, hook_events = read(K.job .. id, 'items', 'finished_ms', 'hook_events')
if not items or finished_ms then
  -- The job has ended, so no worker will read the items.
  redis.call('UNLINK', K.parts .. id)
elseif redis.call('ZSCORE', K.leases, id) then
  add_event(id, 'progress',
    string.format('{"done":%d,"total":%d,"unit":"items"}', redis.call('HLEN', K.parts .. id), tonumber(items)))
  queue_webhook(id, hook_events, 'progress', now_ms() + 500)
end
return publish(1)
