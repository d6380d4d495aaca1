-- Shared by the scripts that end jobs, or return them to the queue.

-- Removes an ended job and all that belongs to it.
local function forget(id, now)
  local key = K.job .. id
  local caller, out, out_blob, in_blob, idem = read(key, 'caller', 'out', 'out_blob', 'in_blob', 'idem')
  if out_blob then redis.call('ZADD', K.trash, now, out_blob) end
  if in_blob then redis.call('ZADD', K.trash, now, in_blob) end
  if out then redis.call('UNLINK', out) end
  if idem and string.match(redis.call('GET', idem) or '', '^(%S+)') == id then redis.call('DEL', idem) end
  for _, event in ipairs({'started', 'progress', 'ended'}) do redis.call('ZREM', K.outbox, id .. ' ' .. event) end
  redis.call('UNLINK', key, K.input .. id, K.parts .. id, K.events .. id, K.hooks .. id, K.hook_log .. id)
  redis.call('ZREM', K.jobs .. caller, id)
  redis.call('ZREM', K.expiring, id .. ' ' .. caller)
end

-- THE terminal write: every job ends here, and nowhere else. `fields` is a flat list of field, value.
local function finish(id, now, default_ttl_ms, status, fields)
  local key = K.job .. id
  local model, task, bytes, caller, ttl_ms, keep, in_blob, hook, files, gone, idem, idem_until_ms =
    read(key, 'model', 'task', 'bytes', 'caller', 'ttl_ms', 'keep', 'in_blob', 'hook', 'files', 'gone', 'idem',
      'idem_until_ms')
  ttl_ms = tonumber(ttl_ms or default_ttl_ms)
  redis.call('HSET', key, 'status', status, 'finished_ms', now, 'expires_ms', now + ttl_ms, unpack(fields))
  redis.call('HINCRBY', key, 'ends', 1)
  redis.call('ZREM', K.ready .. model, id)
  redis.call('ZREM', K.leases, id)
  redis.call('ZREM', K.deadlines, id)
  redis.call('PEXPIRE', key, ttl_ms)
  -- The key of a deleted job may already belong to another job. `forget` checks that.
  if idem and not gone then
    -- A record of version 1 has no such field, and its key has a time already.
    if idem_until_ms then
      redis.call('PEXPIRE', idem, math.max(ttl_ms, tonumber(idem_until_ms) - now))
    else
      redis.call('PEXPIRE', idem, ttl_ms, 'GT')
    end
  end
  redis.call('ZADD', K.expiring, now + ttl_ms, id .. ' ' .. caller)
  redis.call('PEXPIRE', K.events .. id, ttl_ms)
  -- The request is the largest part of a job. After a complete job it is seldom needed.
  local keeps_request = status ~= 'complete' or keep
  if in_blob then
    redis.call('ZADD', K.trash, keeps_request and now + ttl_ms or now, in_blob)
    redis.call('UNLINK', K.parts .. id)
  elseif keeps_request then
    redis.call('PEXPIRE', K.input .. id, ttl_ms)
    redis.call('UNLINK', K.parts .. id)
  else
    redis.call('UNLINK', K.input .. id, K.parts .. id)
  end
  if files then
    for _, file in pairs(cjson.decode(files)) do
      if redis.call('EXISTS', K.file .. file) == 1 then redis.call('HINCRBY', K.file .. file, 'refs', -1) end
    end
  end
  redis.call('HINCRBY', K.totals, 'jobs', -1)
  redis.call('HINCRBY', K.totals, 'bytes', -tonumber(bytes))
  redis.call('HINCRBY', K.open, caller, -1)
  redis.call('HINCRBY', K.counters, task .. '|' .. model .. '|' .. status, 1)
  table.insert(ended, id .. ' ' .. status)
  if gone then
    forget(id, now)
  elseif hook then
    redis.call('HSET', K.hooks .. id, 'url', hook, 'status', status, 'caller', caller, 'task', task, 'model', model)
    redis.call('PEXPIRE', K.hooks .. id, K.hook_ttl_ms)
    queue_webhook(id, redis.call('HGET', key, 'hook_events'), 'ended', now)
  end
end

-- The store itself ends a job: deadline, cancellation, delivery limit or crash. `reason` is the error of a failed job.
local function end_unreported(id, now, ttl_ms, status, reason)
  local task, model, deliveries = read(K.job .. id, 'task', 'model', 'deliveries')
  local fields = {}
  if reason then
    reason.deliveries = tonumber(deliveries)
    fields = {'error', cjson.encode(reason)}
  end
  table.insert(unreported, {id, task, model, status, reason and reason.code or '', deliveries})
  finish(id, now, ttl_ms, status, fields)
end

local function fail(id, now, ttl_ms, code, message)
  end_unreported(id, now, ttl_ms, 'failed', {code = code, message = message, retryable = retryable(code)})
end

local function expire(id, now, ttl_ms)
  fail(id, now, ttl_ms, 'expired', 'The deadline passed while the job waited in the queue.')
end

-- Returns a job to its old place in the queue. If its cancellation was requested, the job ends instead.
local function requeue(id, now, ttl_ms, why)
  local key = K.job .. id
  local model, score, cancel = read(key, 'model', 'score', 'cancel')
  redis.call('HDEL', key, 'fence')
  redis.call('ZREM', K.leases, id)
  if cancel then
    end_unreported(id, now, ttl_ms, 'canceled')
  else
    redis.call('HSET', key, 'status', 'starting')
    redis.call('ZADD', K.ready .. model, score, id)
    redis.call('SADD', K.models, model)
    add_log(id, 'warning', why)
  end
end
