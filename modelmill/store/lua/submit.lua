-- include: lingering
-- Accepts a job: record, queue and payload in one step. Safe to replay with the same id.
-- Empty means none for: `idempotency_key`, `expires_in_ms`, `max_open`, `interval_ms`, `burst`, `files` and `blob`.
-- `max_share` is of the server's maxmemory. `max_open`, `interval_ms` and `burst` are the caller's limits. `files` is
-- JSON: a reference in the request → file id. `blob` names the payload in the blob store. Further fields of the
-- record follow the arguments, as field, value, …
-- Returns {verdict, id or file id, 1 if a bell is due, ms until a retry makes sense, jobs left of the burst}. The
-- verdict is one of `Verdict` in records.py.
-- The caller wrote the payload just before, under a short TTL or into the blob store.
local now = now_ms()
local FULL_RETRY_MS, MEMORY_RETRY_MS, QUOTA_RETRY_MS = 5000, 10000, 1000

local function refused(verdict, about, retry_ms, left)
  redis.call('DEL', K.input .. id)
  if blob ~= '' then redis.call('ZADD', K.trash, now, blob) end
  return {verdict, about or id, 0, math.ceil(retry_ms or 0), left or -1}
end

-- Whether the server is near its memory limit. INFO costs a little, so the answer is kept for 250 ms.
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

-- The API sent the same job again after a lost reply. The job is accepted; only its bell may be missing.
if redis.call('EXISTS', K.job .. id) == 1 then
  return {'accepted', id, 1, 0, -1}
end

local idem = K.idempotency .. caller .. ':' .. idempotency_key
if idempotency_key ~= '' then
  local seen_id, seen_hash = string.match(redis.call('GET', idem) or '', '^(%S+) (%S+)$')
  if seen_id then
    local seen_task, gone = read(K.job .. seen_id, 'task', 'gone')
    -- If that job was deleted, this is a new job.
    if seen_task and not gone then
      return refused(seen_hash == body_hash and 'replayed' or 'conflict', seen_id)
    end
  end
end

if max_open and tonumber(redis.call('HGET', K.open, caller) or 0) >= max_open then
  return refused('quota_full', nil, QUOTA_RETRY_MS)
end
-- The generic cell rate algorithm (ITU-T I.371): a job is due each interval, and up to `burst` may come early.
local due
local left, unused = -1, -1
if interval_ms then
  due = math.max(tonumber(redis.call('GET', K.rate .. caller) or 0), now) + interval_ms
  -- The addition makes up for rounding, which would refuse the last job of a burst.
  local spare_ms = burst * interval_ms - (due - now) + math.min(1, interval_ms / 2)
  left = math.max(0, math.floor(spare_ms / interval_ms))
  if spare_ms < 0 then return refused('rate_limited', nil, -spare_ms, 0) end
  -- A job that is refused for another reason does not use its place in the burst.
  unused = left + 1
end
local ready = K.ready .. model
local depth = redis.call('ZCARD', ready)
if depth >= max_depth then return refused('queue_full', nil, FULL_RETRY_MS, unused) end
if tonumber(redis.call('HGET', K.totals, 'bytes') or 0) + bytes > max_bytes then
  return refused('bytes_full', nil, FULL_RETRY_MS, unused)
end
if memory_is_short(max_share) then return refused('store_full', nil, MEMORY_RETRY_MS, unused) end
if blob == '' and redis.call('EXISTS', K.input .. id) == 0 then
  return {'payload_missing', id, 0, 1000, unused}
end
local file_ids = files ~= '' and cjson.decode(files) or {}
for _, file in pairs(file_ids) do
  if redis.call('HGET', K.file .. file, 'owner') ~= caller then return refused('file_missing', file, 0, unused) end
end

local sequence = redis.call('INCR', K.sequence)
local score = string.format('%.0f', rank * K.lane_span + sequence)
if blob == '' then redis.call('PERSIST', K.input .. id) end
redis.call('HSET', K.job .. id, 'task', task, 'model', model, 'lane', lane, 'batched', batched, 'items', items,
  'bytes', bytes, 'caller', caller, 'status', 'starting', 'created_ms', now, 'deliveries', 0, 'score', score,
  unpack(ARGV, FIRST))
redis.call('ZADD', ready, score, id)
redis.call('ZADD', K.jobs .. caller, sequence, id)
redis.call('SADD', K.models, model)
redis.call('HINCRBY', K.totals, 'jobs', 1)
redis.call('HINCRBY', K.totals, 'bytes', bytes)
redis.call('HINCRBY', K.open, caller, 1)
if due then
  redis.call('SET', K.rate .. caller, string.format('%.3f', due), 'PX', math.ceil(burst * interval_ms) + 1000)
end
if files ~= '' then
  redis.call('HSET', K.job .. id, 'files', files)
  for _, file in pairs(file_ids) do redis.call('HINCRBY', K.file .. file, 'refs', 1) end
end
if blob ~= '' then redis.call('HSET', K.job .. id, 'in_blob', blob) end
if expires_in_ms then
  redis.call('HSET', K.job .. id, 'deadline_ms', now + expires_in_ms)
  redis.call('ZADD', K.deadlines, now + expires_in_ms, id)
end
if idempotency_key ~= '' then
  -- It does not expire while the job waits or runs. The job's end gives it its time.
  redis.call('SET', idem, id .. ' ' .. body_hash)
  redis.call('HSET', K.job .. id, 'idem', idem, 'idem_until_ms', now + idempotency_ttl_ms)
end

-- A bell wakes one worker. A bell is due if the queue was empty and no other bell is on its way. Another one is due
-- after each `bell_every` jobs, so that a long queue wakes more workers. If a drain lingers on the model, it is woken
-- and no bell is due.
local bell = 0
local batchful = (depth + 1) % bell_every == 0
if (batchful or depth == 0) and not wake_idle(model)
  and (batchful or redis.call('SET', K.bell_sent .. model, '1', 'NX', 'PX', K.bell_sent_ttl_ms)) then
  bell = 1
  send_away()
end
return {'accepted', id, bell, 0, left}
