-- Shared by all scripts. Times are milliseconds of Redis TIME: no other clock counts.

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Who waits is told of all that one script wrote at once: `return told(…)`. Ends and other news have a
-- channel each, since most wait for the end only.
local ended, news, hooked = {}, {}, false
-- Ends that no worker brought about, which therefore no worker logs: whoever called the script is to.
local unlogged = {}
local function told(reply)
  if #ended > 0 then redis.call('PUBLISH', K.ended, table.concat(ended, '\n')) end
  if hooked then table.insert(news, '- hook') end
  if #news > 0 then redis.call('PUBLISH', K.news, table.concat(news, '\n')) end
  return reply
end

-- Puts a webhook into the outbox, if the job asked for that event. One that still waits stands for both.
local function hook(id, wanted, event, due)
  if wanted and string.find(wanted, ',' .. event .. ',', 1, true) then
    redis.call('ZADD', K.outbox, 'NX', due, id .. ' ' .. event)
    hooked = true
  end
end

-- Adds to what can be followed of a job. `data` is JSON.
local function happened(id, event, data)
  redis.call('XADD', K.events .. id, 'MAXLEN', '~', 200, '*', 'type', event, 'data', data)
  table.insert(news, id .. ' ' .. event)
end

local function log(id, level, message)
  happened(id, 'log', cjson.encode({level = level, message = message}))
end

local HOOK_TTL_MS = 5 * 24 * 3600 * 1000

-- Removes a job that has ended, with all that belongs to it.
local function forget(id, now)
  local key = K.job .. id
  local job = redis.call('HMGET', key, 'caller', 'out', 'out_blob', 'in_blob', 'idem')
  for i = 3, 4 do
    if job[i] then redis.call('ZADD', K.trash, now, job[i]) end
  end
  if job[2] then redis.call('UNLINK', job[2]) end
  if job[5] and string.match(redis.call('GET', job[5]) or '', '^(%S+)') == id then redis.call('DEL', job[5]) end
  for _, event in ipairs({'started', 'progress', 'ended'}) do redis.call('ZREM', K.outbox, id .. ' ' .. event) end
  redis.call('UNLINK', key, K.input .. id, K.parts .. id, K.events .. id, K.hooks .. id, K.hooklog .. id)
  redis.call('ZREM', K.jobs .. job[1], id)
  redis.call('ZREM', K.expiring, id .. ' ' .. job[1])
end

-- Removes an uploaded file.
local function drop_file(file, now)
  local known = redis.call('HMGET', K.file .. file, 'bytes', 'blob')
  if known[1] then redis.call('HINCRBY', K.totals, 'file_bytes', -tonumber(known[1])) end
  if known[2] then redis.call('ZADD', K.trash, now, known[2]) end
  redis.call('UNLINK', K.file .. file, K.blob .. file)
  redis.call('ZREM', K.files, file)
end

-- THE terminal write: every job ends here, and nowhere else. `fields` is a flat list of field, value.
local function finish(id, now, default_ttl_ms, status, fields)
  local key = K.job .. id
  local job = redis.call('HMGET', key, 'model', 'task', 'bytes', 'caller', 'ttl_ms', 'keep', 'in_blob', 'hook', 'files', 'gone')
  local ttl_ms = tonumber(job[5] or default_ttl_ms)
  redis.call('HSET', key, 'status', status, 'finished_ms', now, 'expires_ms', now + ttl_ms, unpack(fields))
  redis.call('HINCRBY', key, 'ends', 1)
  redis.call('ZREM', K.ready .. job[1], id)
  redis.call('ZREM', K.leases, id)
  redis.call('ZREM', K.deadlines, id)
  redis.call('PEXPIRE', key, ttl_ms)
  redis.call('ZADD', K.expiring, now + ttl_ms, id .. ' ' .. job[4])
  redis.call('PEXPIRE', K.events .. id, ttl_ms)
  -- The largest part of a job, and after a good end of little use.
  local keep = status ~= 'complete' or job[6]
  if job[7] then
    redis.call('ZADD', K.trash, keep and now + ttl_ms or now, job[7])
  elseif keep then
    redis.call('PEXPIRE', K.input .. id, ttl_ms)
  else
    redis.call('UNLINK', K.input .. id)
  end
  if job[9] then
    for _, file in pairs(cjson.decode(job[9])) do
      if redis.call('EXISTS', K.file .. file) == 1 then redis.call('HINCRBY', K.file .. file, 'refs', -1) end
    end
  end
  redis.call('DEL', K.parts .. id)
  redis.call('HINCRBY', K.totals, 'jobs', -1)
  redis.call('HINCRBY', K.totals, 'bytes', -tonumber(job[3]))
  redis.call('HINCRBY', K.open, job[4], -1)
  redis.call('HINCRBY', K.counters, job[2] .. '|' .. job[1] .. '|' .. status, 1)
  table.insert(ended, id .. ' ' .. status)
  if job[10] then
    forget(id, now)
  elseif job[8] then
    redis.call('HSET', K.hooks .. id, 'url', job[8], 'status', status, 'caller', job[4], 'task', job[2], 'model', job[1])
    redis.call('PEXPIRE', K.hooks .. id, HOOK_TTL_MS)
    hook(id, redis.call('HGET', key, 'hook_events'), 'ended', now)
  end
end

local function wake(node, why)
  redis.call('RPUSH', K.wake .. node, why)
  redis.call('PEXPIRE', K.wake .. node, K.wake_ms)
end

-- Gets somebody to work on a model at once: a drain that lingers on it. Returns whether there was one.
local function wake_idle(model)
  local node = redis.call('SPOP', K.idle .. model)
  if not node then return false end
  redis.call('SREM', K.lingering, node)
  wake(node, 'go')
  return true
end

-- A bell is about to be sent. Drains that linger hold the processes that it may need.
local function send_away()
  for _, node in ipairs(redis.call('SMEMBERS', K.lingering)) do wake(node, 'leave') end
  redis.call('DEL', K.lingering)
end

-- An end that no worker brought about. `reason` is the error of a job that failed.
local function close(id, now, ttl_ms, status, reason)
  local job = redis.call('HMGET', K.job .. id, 'task', 'model', 'deliveries')
  local fields = {}
  if reason then
    reason.deliveries = tonumber(job[3])
    fields = {'error', cjson.encode(reason)}
  end
  table.insert(unlogged, {id, job[1], job[2], status, reason and reason.code or '', job[3]})
  finish(id, now, ttl_ms, status, fields)
end

local function fail(id, now, ttl_ms, code, message, retryable)
  close(id, now, ttl_ms, 'failed', {code = code, message = message, retryable = retryable})
end

-- Back to its old place in the queue. A job that was asked to cancel ends instead.
local function requeue(id, now, ttl_ms, why)
  local key = K.job .. id
  local job = redis.call('HMGET', key, 'model', 'score', 'cancel')
  redis.call('HDEL', key, 'fence')
  redis.call('ZREM', K.leases, id)
  if job[3] then
    close(id, now, ttl_ms, 'canceled')
  else
    redis.call('HSET', key, 'status', 'starting')
    redis.call('ZADD', K.ready .. job[1], job[2], id)
    redis.call('SADD', K.models, job[1])
    log(id, 'warning', why)
  end
end
