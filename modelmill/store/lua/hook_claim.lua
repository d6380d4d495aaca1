#!lua flags=allow-oom
-- Takes webhooks that are due, each for the length of a lease: then it is due again, should this process die.
-- ARGV: how many, lease ms. Returns each as
--   {id, event, leased until, url, caller, attempts, sent before, body, status, task, model}.
-- What needs no sending any more is dropped here: of a job deleted, of one whose receiver wants no more,
-- started or ended a second time, and progress of a job that has ended.
local now = now_ms()
local count, lease_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local taken = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', K.outbox, '-inf', now, 'LIMIT', 0, count)) do
  local id, event = string.match(member, '^(%S+) (%S+)$')
  local job = redis.call('HMGET', K.job .. id, 'hook', 'caller', 'finished_ms', 'gone')
  local kept = redis.call('HMGET', K.hooks .. id, 'url', 'caller', 'stopped', 'tries:' .. event,
    'sent:' .. event, 'body:' .. event, 'status', 'task', 'model')
  local url, caller = kept[1] or job[1], kept[2] or job[2]
  local over = kept[5]
  if event == 'progress' then over = job[3] or not job[1] end
  if not url or kept[3] or job[4] or over then
    redis.call('ZREM', K.outbox, member)
  else
    redis.call('ZADD', K.outbox, now + lease_ms, member)
    table.insert(taken, {id, event, now + lease_ms, url, caller, tonumber(kept[4] or 0), tonumber(kept[5] or 0),
      kept[6] or '', kept[7] or '', kept[8] or '', kept[9] or ''})
  end
end
return taken
