-- Accepts a job: record, queue and payload in one step. Safe to replay with the same id.
-- ARGV: id, task, model, lane, lane rank, batched, items, bytes, caller, idempotency key, body hash,
--       idempotency ttl ms, expires in ms, bell every, max depth, max bytes, max share of maxmemory
-- Returns {verdict, id, bell due}. The payload was written just before, under a short TTL.
local id, task, model, lane, rank = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local batched, items, bytes, caller = ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9]
local idem_key, body_hash, idem_ttl_ms = ARGV[10], ARGV[11], ARGV[12]
local expires_in_ms, bell_every = tonumber(ARGV[13]), tonumber(ARGV[14])
local max_depth, max_bytes, max_share = tonumber(ARGV[15]), tonumber(ARGV[16]), tonumber(ARGV[17])

-- Whether the server is near its limit. Asking it costs a little, so the answer is kept for a moment.
local function memory_is_short(share)
  local known = redis.call('GET', K.memory)
  if known then return known == '1' end
  local info = redis.call('INFO', 'memory')
  local limit = tonumber(string.match(info, 'maxmemory:(%d+)'))
  local used = tonumber(string.match(info, 'used_memory:(%d+)'))
  local short = limit > 0 and used > limit * share
  redis.call('SET', K.memory, short and '1' or '0', 'PX', 250)
  return short
end

-- The caller's retry of a lost reply: the job is there, only the bell may be missing.
if redis.call('EXISTS', K.job .. id) == 1 then
  return {'accepted', id, 1}
end

local idem = K.idem .. caller .. ':' .. idem_key
if idem_key ~= '' then
  local seen = redis.call('GET', idem)
  if seen then
    local seen_id, seen_hash = string.match(seen, '^(%S+) (%S+)$')
    redis.call('DEL', K.input .. id)
    if seen_hash ~= body_hash then
      return {'conflict', seen_id, 0}
    end
    return {'replayed', seen_id, 0}
  end
end

local ready = K.ready .. model
local depth = redis.call('ZCARD', ready)
if depth >= max_depth then
  redis.call('DEL', K.input .. id)
  return {'queue_full', id, 0}
end
if tonumber(redis.call('HGET', K.totals, 'bytes') or 0) + bytes > max_bytes then
  redis.call('DEL', K.input .. id)
  return {'bytes_full', id, 0}
end
if memory_is_short(max_share) then
  redis.call('DEL', K.input .. id)
  return {'store_full', id, 0}
end
if redis.call('EXISTS', K.input .. id) == 0 then
  return {'payload_missing', id, 0}
end

local now = now_ms()
local score = rank * 1125899906842624 + redis.call('INCR', K.seq)
redis.call('PERSIST', K.input .. id)
redis.call('HSET', K.job .. id, 'task', task, 'model', model, 'lane', lane, 'batched', batched, 'items', items,
  'bytes', bytes, 'caller', caller, 'status', 'starting', 'created_ms', now, 'deliveries', 0,
  'score', string.format('%.0f', score))
redis.call('ZADD', ready, string.format('%.0f', score), id)
redis.call('SADD', K.models, model)
redis.call('HINCRBY', K.totals, 'jobs', 1)
redis.call('HINCRBY', K.totals, 'bytes', bytes)
if expires_in_ms then
  redis.call('HSET', K.job .. id, 'deadline_ms', now + expires_in_ms)
  redis.call('ZADD', K.deadlines, now + expires_in_ms, id)
end
if idem_key ~= '' then
  redis.call('SET', idem, id .. ' ' .. body_hash, 'PX', idem_ttl_ms)
end

-- A bell wakes one worker. One is due when the queue was empty, unless one is still on its way, and
-- again for each batchful, so that a long queue wakes more workers. None is where a drain lingers on the model.
local bell = 0
local batchful = (depth + 1) % bell_every == 0
if (batchful or depth == 0) and not wake_idle(model)
  and (batchful or redis.call('SET', K.rung .. model, '1', 'NX', 'PX', 5000)) then
  bell = 1
  send_away()
end
return {'accepted', id, bell}
