#!lua flags=allow-oom
-- Finished items of a batched job were kept just before: tells how far it is. ARGV: id
local id = ARGV[1]
local job = redis.call('HMGET', K.job .. id, 'items', 'finished_ms', 'hook_events')
if not job[1] or job[2] then
  -- It has ended: nobody will ask for them.
  redis.call('UNLINK', K.parts .. id)
elseif redis.call('ZSCORE', K.leases, id) then
  happened(id, 'progress',
    string.format('{"done":%d,"total":%d,"unit":"items"}', redis.call('HLEN', K.parts .. id), tonumber(job[1])))
  hook(id, job[3], 'progress', now_ms() + 500)
end
return told(1)
