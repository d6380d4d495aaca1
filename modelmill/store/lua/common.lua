-- Shared by all scripts. Before this file, scripts.py puts:
--   K: the keys and constants of keys.py, named in lower case
--   retryable(code): whether a retry may help after this error, from errors.py
-- and after it, one local for each argument of the script, from arguments.py.
-- All times are milliseconds of Redis TIME. No other clock counts.

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The fields of a hash, in the order in which they are named; false for a missing one. Name the locals like the
-- fields: `local fence, cancel = read(key, 'fence', 'cancel')`. A table by name is slower: 4.6 µs for 14 fields, against
-- 3.3 µs.
local function read(key, ...)
  return unpack(redis.call('HMGET', key, ...))
end

-- All events of one script are published in one message per channel, by `return publish(reply)`. Ends have a channel
-- of their own, since most subscribers wait for an end only.
local ended, news, webhook_queued = {}, {}, false
-- Ends that no worker reported, so no worker logs them. The process that called the script logs them.
local unreported = {}
local function publish(reply)
  if #ended > 0 then redis.call('PUBLISH', K.ended_channel, table.concat(ended, '\n')) end
  if webhook_queued then table.insert(news, '- hook') end
  if #news > 0 then redis.call('PUBLISH', K.news_channel, table.concat(news, '\n')) end
  return reply
end

-- Puts a webhook into the outbox, if the job asked for this event. If one already waits, it stands for both.
local function queue_webhook(id, hook_events, event, due_ms)
  if hook_events and string.find(hook_events, ',' .. event .. ',', 1, true) then
    redis.call('ZADD', K.outbox, 'NX', due_ms, id .. ' ' .. event)
    webhook_queued = true
  end
end

-- Adds an event to the stream that followers of the job read. `data` is JSON.
local function add_event(id, event, data)
  redis.call('XADD', K.events .. id, 'MAXLEN', '~', 200, '*', 'type', event, 'data', data)
  table.insert(news, id .. ' ' .. event)
end

local function add_log(id, level, message)
  add_event(id, 'log', cjson.encode({level = level, message = message}))
end

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

-- Removes an uploaded file.
local function drop_file(file, now)
  local bytes, blob = read(K.file .. file, 'bytes', 'blob')
  if bytes then redis.call('HINCRBY', K.totals, 'file_bytes', -tonumber(bytes)) end
  if blob then redis.call('ZADD', K.trash, now, blob) end
  redis.call('UNLINK', K.file .. file, K.blob .. file)
  redis.call('ZREM', K.files, file)
end

-- THE terminal write: every job ends here, and nowhere else. `fields` is a flat list of field, value.
local function finish(id, now, default_ttl_ms, status, fields)
  local key = K.job .. id
  local model, task, bytes, caller, ttl_ms, keep, in_blob, hook, files, gone =
    read(key, 'model', 'task', 'bytes', 'caller', 'ttl_ms', 'keep', 'in_blob', 'hook', 'files', 'gone')
  ttl_ms = tonumber(ttl_ms or default_ttl_ms)
  redis.call('HSET', key, 'status', status, 'finished_ms', now, 'expires_ms', now + ttl_ms, unpack(fields))
  redis.call('HINCRBY', key, 'ends', 1)
  redis.call('ZREM', K.ready .. model, id)
  redis.call('ZREM', K.leases, id)
  redis.call('ZREM', K.deadlines, id)
  redis.call('PEXPIRE', key, ttl_ms)
  redis.call('ZADD', K.expiring, now + ttl_ms, id .. ' ' .. caller)
  redis.call('PEXPIRE', K.events .. id, ttl_ms)
  -- The request is the largest part of a job. After a complete job it is seldom needed.
  local keeps_request = status ~= 'complete' or keep
  if in_blob then
    redis.call('ZADD', K.trash, keeps_request and now + ttl_ms or now, in_blob)
  elseif keeps_request then
    redis.call('PEXPIRE', K.input .. id, ttl_ms)
  else
    redis.call('UNLINK', K.input .. id)
  end
  if files then
    for _, file in pairs(cjson.decode(files)) do
      if redis.call('EXISTS', K.file .. file) == 1 then redis.call('HINCRBY', K.file .. file, 'refs', -1) end
    end
  end
  redis.call('DEL', K.parts .. id)
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

local function wake(node, word)
  redis.call('RPUSH', K.wake .. node, word)
  redis.call('PEXPIRE', K.wake .. node, K.wake_ttl_ms)
end

-- Wakes one drain that lingers on the model, if there is one. Returns whether there was one.
local function wake_idle(model)
  local node = redis.call('SPOP', K.idle .. model)
  if not node then return false end
  redis.call('SREM', K.lingering, node)
  wake(node, 'go')
  return true
end

-- A bell is about to be sent, and a lingering drain may hold the child that the bell needs.
local function send_away()
  for _, node in ipairs(redis.call('SMEMBERS', K.lingering)) do wake(node, 'leave') end
  redis.call('DEL', K.lingering)
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
