#!lua flags=allow-oom
-- Returns jobs of expired leases to the queue, ends jobs that are past their deadline, and names the models whose
-- bell seems to be lost. Every process may run it, at any time.
-- Returns {{leases returned, jobs expired, models to ring for}, unreported ends}.
local now = now_ms()

-- While Redis was down, no worker could renew a lease. After a restart, every lease gets one more lease of grace, so
-- that an outage does not count against any job.
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local run_id, grace_until_ms = read(K.reaper, 'run_id', 'grace_until_ms')
if run_id ~= server then
  grace_until_ms = now + lease_ms
  redis.call('HSET', K.reaper, 'run_id', server, 'grace_until_ms', grace_until_ms)
end

local returned, expired = 0, 0
if now >= tonumber(grace_until_ms) then
  for _, id in ipairs(redis.call('ZRANGE', K.leases, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most)) do
    if redis.call('EXISTS', K.job .. id) == 1 then
      requeue(id, now, result_ttl_ms, 'The worker stopped responding. The job waits in the queue again.')
      returned = returned + 1
    else
      redis.call('ZREM', K.leases, id)
    end
  end
end

for _, id in ipairs(redis.call('ZRANGE', K.deadlines, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most)) do
  redis.call('ZREM', K.deadlines, id)
  local finished_ms, started_ms = read(K.job .. id, 'finished_ms', 'started_ms')
  if not finished_ms and not started_ms and redis.call('EXISTS', K.job .. id) == 1 then
    expire(id, now, result_ttl_ms)
    expired = expired + 1
  end
end

-- Records expire by themselves. Their entries in the lists do not.
for _, member in ipairs(redis.call('ZRANGE', K.expiring, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most * 4)) do
  local id, caller = string.match(member, '^(%S+) (%S+)$')
  redis.call('ZREM', K.expiring, member)
  redis.call('ZREM', K.jobs .. caller, id)
end

local bells = {}
for _, model in ipairs(redis.call('SMEMBERS', K.models)) do
  if redis.call('ZCARD', K.ready .. model) == 0 then
    redis.call('SREM', K.models, model)
  elseif not wake_idle(model)
    and redis.call('SET', K.bell_sent .. model, '1', 'NX', 'PX', K.bell_sent_ttl_ms) then
    table.insert(bells, model)
  end
end
if #bells > 0 then send_away() end
return publish({{returned, expired, bells}, unreported})
