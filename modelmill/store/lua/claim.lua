#!lua flags=allow-oom
-- Leases jobs of one model to one claim. Safe to replay with the same fence.
-- ARGV: model, fence, node, max count, max bytes, lease ms, max deliveries, result ttl ms, linger ms,
--       the models that the node serves, each between commas
-- With linger ms above 0, a node that finds nothing, here or for any other of its models, is noted down as
-- idle: work wakes it through its wake list.
-- Returns {{ready jobs left, whether the node was noted as idle, job, job, …}, ends to log}, a job as
--   {id, task, batched, bytes, deliveries, created ms, now ms, suspect, files, blob}: files is JSON, what the
--   request names as media → the id of the file; blob is where the request lies, if not beside the record.
--
-- Lanes: interactive jobs first, then normal, then bulk, which fills what the others leave. No lane starves: of
-- the places of a claim, one in eight is kept for normal and one in eight for bulk, while they have jobs. A claim
-- may end before those places: at its number of bytes, or at a suspect, which comes only as the first of a claim.
-- So of eight claims that find jobs of more than one lane, one begins with a normal job and one with a bulk job;
-- the first job of a claim is taken whatever its size.
local model, fence, node = ARGV[1], ARGV[2], ARGV[3]
local max_count, max_bytes, lease_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local max_deliveries, ttl_ms, linger_ms = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local ready, claim = K.ready .. model, K.claim .. fence
local now = now_ms()

local function describe(id)
  local job = redis.call('HMGET', K.job .. id, 'task', 'batched', 'bytes', 'deliveries', 'created_ms', 'suspect',
    'files', 'in_blob')
  return {id, job[1], job[2], job[3], job[4], job[5], tostring(now), job[6] or '', job[7] or '', job[8] or ''}
end

local reply = {0, 0}
local replayed = redis.call('LRANGE', claim, 0, -1)
if #replayed > 0 then
  for _, id in ipairs(replayed) do
    if redis.call('HGET', K.job .. id, 'fence') == fence and redis.call('ZSCORE', K.leases, id) then
      table.insert(reply, describe(id))
    end
  end
  reply[1] = redis.call('ZCARD', ready)
  return {reply, unlogged}
end

local function lane(rank, count)
  if count <= 0 then return {} end
  return redis.call('ZRANGE', ready, string.format('%.0f', rank * K.lane), '(' .. string.format('%.0f', (rank + 1) * K.lane),
    'BYSCORE', 'LIMIT', 0, count)
end

local function candidates()
  local interactive, normal, bulk = lane(0, max_count), lane(1, max_count), lane(2, max_count)
  local kept = math.floor(max_count / 8)
  local for_normal, for_bulk = kept, kept
  local ids, begins = {}, nil
  if #interactive + #normal + #bulk > math.max(#interactive, #normal, #bulk) then
    local turn = redis.call('HINCRBY', K.turns, model, 1) % 8
    if turn == 4 and #normal > 0 then
      begins, for_normal = normal, math.max(1, kept)
    elseif turn == 0 and #bulk > 0 then
      begins, for_bulk = bulk, math.max(1, kept)
    end
    if begins then table.insert(ids, begins[1]) end
  end
  for_normal, for_bulk = math.min(for_normal, #normal), math.min(for_bulk, #bulk)
  local n0 = math.min(#interactive, max_count - for_normal - for_bulk)
  local n1 = math.min(#normal, max_count - n0 - for_bulk)
  local n2 = math.min(#bulk, max_count - n0 - n1)
  for _, part in ipairs({{interactive, n0}, {normal, n1}, {bulk, n2}}) do
    for i = part[1] == begins and 2 or 1, part[2] do table.insert(ids, part[1][i]) end
  end
  return ids
end

-- Their bells may lie in the broker already, and nobody would send a lingering drain away for them.
local function others_wait()
  for _, other in ipairs(redis.call('SMEMBERS', K.models)) do
    if other ~= model and string.find(ARGV[10], ',' .. other .. ',', 1, true) and redis.call('ZCARD', K.ready .. other) > 0 then
      return true
    end
  end
  return false
end

local bytes = 0
for _, id in ipairs(candidates()) do
  local key = K.job .. id
  local job = redis.call('HMGET', key, 'bytes', 'deliveries', 'suspect', 'deadline_ms', 'started_ms', 'hook_events',
    'given_back')
  if not job[1] then
    redis.call('ZREM', ready, id)
  elseif job[4] and tonumber(job[4]) <= now and not job[5] then
    fail(id, now, ttl_ms, 'expired', 'The deadline passed while the job waited in the queue.', false)
  elseif tonumber(job[2]) >= max_deliveries then
    fail(id, now, ttl_ms, 'delivery_limit',
      'The job was handed to a worker ' .. job[2] .. ' times without an end.', true)
  else
    -- Whoever was in a forward pass when its process died runs alone: it may be the cause.
    if #reply > 2 and (job[3] or bytes + tonumber(job[1]) > max_bytes) then break end
    bytes = bytes + tonumber(job[1])
    redis.call('ZREM', ready, id)
    redis.call('ZREM', K.deadlines, id)
    redis.call('ZADD', K.leases, now + lease_ms, id)
    local deliveries = redis.call('HINCRBY', key, 'deliveries', 1)
    if job[5] or job[7] then
      redis.call('HDEL', key, 'progress')
      log(id, 'info', 'Handed to a worker again: delivery ' .. deliveries .. '.')
    end
    redis.call('HSET', key, 'status', 'running', 'fence', fence, 'node', node)
    if not job[5] then
      redis.call('HSET', key, 'started_ms', now)
      table.insert(news, id .. ' started')
      hook(id, job[6], 'started', now)
    end
    redis.call('RPUSH', claim, id)
    table.insert(reply, describe(id))
    if job[3] then break end
  end
end
if #reply > 2 then redis.call('PEXPIRE', claim, lease_ms * 6) end
reply[1] = redis.call('ZCARD', ready)
if #reply == 2 and reply[1] == 0 and linger_ms > 0 and not others_wait() then
  reply[2] = 1
  redis.call('DEL', K.wake .. node)
  for _, key in ipairs({K.idle .. model, K.lingering}) do
    redis.call('SADD', key, node)
    -- Whoever dies meanwhile is not counted on for long.
    redis.call('PEXPIRE', key, linger_ms + 1000)
  end
end
return told({reply, unlogged})
