-- Accepts a job: record, queue and payload in one step. Safe to replay with the same id.
-- ARGV: id, task, model, lane, lane rank, batched, items, bytes, caller, idempotency key, body hash,
--       idempotency ttl ms, expires in ms, bell every, max depth, max bytes, max share of maxmemory,
--       the caller's limits (jobs at once, ms between two jobs, burst; each may be empty), files (JSON: what the
--       request names as media → file id, or empty), where the payload lies in the blob store (or empty),
--       then field, value of what else the record is to hold.
-- Returns {verdict, id or file id, bell due, ms until a next try makes sense, jobs left of the burst}. The payload
-- was written just before, under a short TTL, or lies in the blob store.
local id, task, model, lane, rank = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local batched, items, bytes, caller = ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9]
local idem_key, body_hash, idem_ttl_ms = ARGV[10], ARGV[11], ARGV[12]
local expires_in_ms, bell_every = tonumber(ARGV[13]), tonumber(ARGV[14])
local max_depth, max_bytes, max_share = tonumber(ARGV[15]), tonumber(ARGV[16]), tonumber(ARGV[17])
local max_open, interval_ms, burst = tonumber(ARGV[18]), tonumber(ARGV[19]), tonumber(ARGV[20])
local files, blob = ARGV[21], ARGV[22]
local now = now_ms()

local function refused(verdict, about, retry_ms, left)
  redis.call('DEL', K.input .. id)
  if blob ~= '' then redis.call('ZADD', K.trash, now, blob) end
  return {verdict, about or id, 0, math.ceil(retry_ms or 0), left or -1}
end

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
  return {'accepted', id, 1, 0, -1}
end

local idem = K.idem .. caller .. ':' .. idem_key
if idem_key ~= '' then
  local seen_id, seen_hash = string.match(redis.call('GET', idem) or '', '^(%S+) (%S+)$')
  -- Of a job that is gone nobody could read the end: this is a new one.
  local seen = seen_id and redis.call('HMGET', K.job .. seen_id, 'task', 'gone') or {}
  if seen[1] and not seen[2] then
    return refused(seen_hash == body_hash and 'replayed' or 'conflict', seen_id)
  end
end

if max_open and tonumber(redis.call('HGET', K.open, caller) or 0) >= max_open then
  return refused('quota_full', nil, 1000)
end
-- The generic cell rate algorithm (ITU-T I.371): a job is due each interval, and up to `burst` may come early.
local due
local left, unused = -1, -1
if interval_ms then
  due = math.max(tonumber(redis.call('GET', K.rate .. caller) or 0), now) + interval_ms
  -- With a little more than what rounding took away, or the last of a burst would be refused.
  local spare_ms = burst * interval_ms - (due - now) + math.min(1, interval_ms / 2)
  left = math.max(0, math.floor(spare_ms / interval_ms))
  if spare_ms < 0 then return refused('rate_limited', nil, -spare_ms, 0) end
  -- What is refused for another reason does not use its place in the burst.
  unused = left + 1
end
local ready = K.ready .. model
local depth = redis.call('ZCARD', ready)
if depth >= max_depth then return refused('queue_full', nil, 5000, unused) end
if tonumber(redis.call('HGET', K.totals, 'bytes') or 0) + bytes > max_bytes then
  return refused('bytes_full', nil, 5000, unused)
end
if memory_is_short(max_share) then return refused('store_full', nil, 10000, unused) end
if blob == '' and redis.call('EXISTS', K.input .. id) == 0 then
  return {'payload_missing', id, 0, 1000, unused}
end
local named = files ~= '' and cjson.decode(files) or {}
for _, file in pairs(named) do
  if redis.call('HGET', K.file .. file, 'owner') ~= caller then return refused('file_missing', file, 0, unused) end
end

local sequence = redis.call('INCR', K.seq)
local score = string.format('%.0f', rank * K.lane + sequence)
if blob == '' then redis.call('PERSIST', K.input .. id) end
redis.call('HSET', K.job .. id, 'task', task, 'model', model, 'lane', lane, 'batched', batched, 'items', items,
  'bytes', bytes, 'caller', caller, 'status', 'starting', 'created_ms', now, 'deliveries', 0, 'score', score,
  unpack(ARGV, 23))
redis.call('ZADD', ready, score, id)
redis.call('ZADD', K.jobs .. caller, sequence, id)
redis.call('SADD', K.models, model)
redis.call('HINCRBY', K.totals, 'jobs', 1)
redis.call('HINCRBY', K.totals, 'bytes', bytes)
redis.call('HINCRBY', K.open, caller, 1)
if due then redis.call('SET', K.rate .. caller, string.format('%.3f', due), 'PX', math.ceil(burst * interval_ms) + 1000) end
if files ~= '' then
  redis.call('HSET', K.job .. id, 'files', files)
  for _, file in pairs(named) do redis.call('HINCRBY', K.file .. file, 'refs', 1) end
end
if blob ~= '' then redis.call('HSET', K.job .. id, 'in_blob', blob) end
if expires_in_ms then
  redis.call('HSET', K.job .. id, 'deadline_ms', now + expires_in_ms)
  redis.call('ZADD', K.deadlines, now + expires_in_ms, id)
end
if idem_key ~= '' then
  redis.call('SET', idem, id .. ' ' .. body_hash, 'PX', idem_ttl_ms)
  redis.call('HSET', K.job .. id, 'idem', idem)
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
return {'accepted', id, bell, 0, left}
