#!lua flags=allow-oom
-- Returns what was left lying: expired leases to the queue, jobs past their deadline to their end, and
-- names the models whose bell seems lost. Anybody may run it at any time.
-- ARGV: lease ms, result ttl ms, at most, rung ttl ms
-- Returns {{leases returned, jobs expired, models to ring}, ends to log}.
local lease_ms, ttl_ms, at_most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()

-- After a restart nobody could beat for a while: one full lease of grace, so an outage charges nobody.
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local seen = redis.call('HMGET', K.reaper, 'run_id', 'grace_until_ms')
if seen[1] ~= run_id then
  redis.call('HSET', K.reaper, 'run_id', run_id, 'grace_until_ms', now + lease_ms)
  seen[2] = now + lease_ms
end

local returned, expired = 0, 0
if now >= tonumber(seen[2]) then
  for _, id in ipairs(redis.call('ZRANGE', K.leases, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most)) do
    if redis.call('EXISTS', K.job .. id) == 1 then
      requeue(id, now, ttl_ms, 'The worker was not heard of any more. The job waits in the queue again.')
      returned = returned + 1
    else
      redis.call('ZREM', K.leases, id)
    end
  end
end

for _, id in ipairs(redis.call('ZRANGE', K.deadlines, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most)) do
  redis.call('ZREM', K.deadlines, id)
  local job = redis.call('HMGET', K.job .. id, 'finished_ms', 'started_ms')
  if not job[1] and not job[2] and redis.call('EXISTS', K.job .. id) == 1 then
    fail(id, now, ttl_ms, 'expired', 'The deadline passed while the job waited in the queue.', false)
    expired = expired + 1
  end
end

-- Records expire by themselves; what lists them does not.
for _, member in ipairs(redis.call('ZRANGE', K.expiring, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most * 4)) do
  local id, caller = string.match(member, '^(%S+) (%S+)$')
  redis.call('ZREM', K.expiring, member)
  redis.call('ZREM', K.jobs .. caller, id)
end

local bells = {}
for _, model in ipairs(redis.call('SMEMBERS', K.models)) do
  if redis.call('ZCARD', K.ready .. model) == 0 then
    redis.call('SREM', K.models, model)
  elseif not wake_idle(model) and redis.call('SET', K.rung .. model, '1', 'NX', 'PX', ARGV[4]) then
    table.insert(bells, model)
  end
end
if #bells > 0 then send_away() end
return told({{returned, expired, bells}, unlogged})
