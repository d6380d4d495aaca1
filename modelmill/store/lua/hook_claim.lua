#!lua flags=allow-oom
-- Takes webhooks that are due. Each is due again after `lease_ms`, in case this process dies. Returns each as
--   {id, event, leased until, url, caller, attempts, sent before, body, status, task, model}.
-- Drops webhooks that need no sending: the job was deleted, the receiver wants no more, `started` or `ended` was sent
-- already, or it is the progress of an ended job.
local now = now_ms()
local taken = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', K.outbox, '-inf', now, 'LIMIT', 0, count)) do
  local id, event = string.match(member, '^(%S+) (%S+)$')
  local hook, job_caller, finished_ms, gone = read(K.job .. id, 'hook', 'caller', 'finished_ms', 'gone')
  local url, caller, stopped, tries, sent, body, status, task, model = read(K.hooks .. id, 'url', 'caller', 'stopped',
    'tries:' .. event, 'sent:' .. event, 'body:' .. event, 'status', 'task', 'model')
  local over = sent
  if event == 'progress' then over = finished_ms or not hook end
  if not (url or hook) or stopped or gone or over then
    redis.call('ZREM', K.outbox, member)
  else
    redis.call('ZADD', K.outbox, now + lease_ms, member)
    table.insert(taken, {id, event, now + lease_ms, url or hook, caller or job_caller, tonumber(tries or 0),
      tonumber(sent or 0), body or '', status or '', task or '', model or ''})
  end
end
return taken
