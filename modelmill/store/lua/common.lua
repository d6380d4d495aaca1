-- Shared by all scripts. Times are milliseconds of Redis TIME: no other clock counts.

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Who waits for an end is told of all that one script wrote at once: `return told(…)`.
local ended = {}
local function told(reply)
  if #ended > 0 then redis.call('PUBLISH', K.ended, table.concat(ended, '\n')) end
  return reply
end

-- THE terminal write: every job ends here, and nowhere else. `fields` is a flat list of field, value.
local function finish(id, now, ttl_ms, status, fields)
  local key = K.job .. id
  local job = redis.call('HMGET', key, 'model', 'task', 'bytes')
  redis.call('HSET', key, 'status', status, 'finished_ms', now, unpack(fields))
  redis.call('HINCRBY', key, 'ends', 1)
  redis.call('ZREM', K.ready .. job[1], id)
  redis.call('ZREM', K.leases, id)
  redis.call('ZREM', K.deadlines, id)
  redis.call('PEXPIRE', key, ttl_ms)
  if status == 'complete' then
    -- The largest part of a job, and of no more use.
    redis.call('UNLINK', K.input .. id)
  else
    redis.call('PEXPIRE', K.input .. id, ttl_ms)
  end
  redis.call('DEL', K.parts .. id)
  redis.call('HINCRBY', K.totals, 'jobs', -1)
  redis.call('HINCRBY', K.totals, 'bytes', -tonumber(job[3]))
  redis.call('HINCRBY', K.counters, job[2] .. '|' .. job[1] .. '|' .. status, 1)
  table.insert(ended, id .. ' ' .. status)
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

local function fail(id, now, ttl_ms, code, message, retryable)
  finish(id, now, ttl_ms, 'failed', {'error', cjson.encode({code = code, message = message, retryable = retryable})})
end

-- Back to its old place in the queue. A job that was asked to cancel ends instead.
local function requeue(id, now, ttl_ms)
  local key = K.job .. id
  local job = redis.call('HMGET', key, 'model', 'score', 'cancel')
  redis.call('HDEL', key, 'fence')
  redis.call('ZREM', K.leases, id)
  if job[3] then
    finish(id, now, ttl_ms, 'canceled', {})
  else
    redis.call('HSET', key, 'status', 'starting')
    redis.call('ZADD', K.ready .. job[1], job[2], id)
    redis.call('SADD', K.models, job[1])
  end
end
