#!lua flags=allow-oom
-- Leases jobs of one model to one claim. A replay with the same fence returns the same jobs.
-- `served` lists the models that the node serves, with a comma before and after each.
-- If `linger_ms` is above 0 and the node finds no job for any model that it serves, it counts as lingering: the
-- next job of `model` wakes it through its list of wake words.
-- Returns {{jobs left in the queue, 1 if the node now lingers, job, job, …}, unreported ends}, a job as
--   {id, task, batched, bytes, deliveries, created ms, now ms, suspect, files, blob}. `files` is JSON: a reference in
--   the request → the id of the file. `blob` names the request in the blob store, and is empty elsewhere.
--
-- Lanes: interactive jobs come first, then normal, then bulk. No lane starves. One in eight places of a claim is
-- kept for normal and one in eight for bulk, while those lanes have jobs. A claim may end before it reaches these
-- places: at its limit of bytes, or at a suspect, which can only be the first job of a claim. So of eight claims
-- that find jobs in more than one lane, one begins with a normal job and one with a bulk job. A claim always takes
-- its first job, of any size.
local ready, claim = K.ready .. model, K.claim .. fence
local now = now_ms()

local function row(id, task, batched, bytes, deliveries, created_ms, suspect, files, in_blob)
  return {id, task, batched, bytes, deliveries, created_ms, tostring(now), suspect or '', files or '', in_blob or ''}
end

local reply = {0, 0}
local replayed = redis.call('LRANGE', claim, 0, -1)
if #replayed > 0 then
  for _, id in ipairs(replayed) do
    local key = K.job .. id
    if redis.call('HGET', key, 'fence') == fence and redis.call('ZSCORE', K.leases, id) then
      table.insert(reply, row(id, read(key, 'task', 'batched', 'bytes', 'deliveries', 'created_ms', 'suspect', 'files',
        'in_blob')))
    end
  end
  reply[1] = redis.call('ZCARD', ready)
  return {reply, unreported}
end

local function lane(rank, count)
  if count <= 0 then return {} end
  local first, last = string.format('%.0f', rank * K.lane_span), string.format('%.0f', (rank + 1) * K.lane_span)
  return redis.call('ZRANGE', ready, first, '(' .. last, 'BYSCORE', 'LIMIT', 0, count)
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

-- A bell for another model may already wait in the broker. No script would wake a lingering drain for it.
local function other_models_wait()
  for _, other in ipairs(redis.call('SMEMBERS', K.models)) do
    if other ~= model and string.find(served, ',' .. other .. ',', 1, true)
      and redis.call('ZCARD', K.ready .. other) > 0 then
      return true
    end
  end
  return false
end

local taken_bytes = 0
for _, id in ipairs(candidates()) do
  local key = K.job .. id
  local task, batched, bytes, deliveries, created_ms, suspect, files, in_blob, deadline_ms, started_ms, hook_events,
    given_back = read(key, 'task', 'batched', 'bytes', 'deliveries', 'created_ms', 'suspect', 'files', 'in_blob',
    'deadline_ms', 'started_ms', 'hook_events', 'given_back')
  if not bytes then
    redis.call('ZREM', ready, id)
  elseif deadline_ms and tonumber(deadline_ms) <= now and not started_ms then
    expire(id, now, result_ttl_ms)
  elseif tonumber(deliveries) >= max_deliveries then
    fail(id, now, result_ttl_ms, 'delivery_limit',
      'The job was handed to a worker ' .. deliveries .. ' times without an end.')
  else
    -- A suspect runs alone: it may be what killed the child.
    if #reply > 2 and (suspect or taken_bytes + tonumber(bytes) > max_bytes) then break end
    taken_bytes = taken_bytes + tonumber(bytes)
    redis.call('ZREM', ready, id)
    redis.call('ZREM', K.deadlines, id)
    redis.call('ZADD', K.leases, now + lease_ms, id)
    deliveries = redis.call('HINCRBY', key, 'deliveries', 1)
    if started_ms or given_back then
      redis.call('HDEL', key, 'progress')
      add_log(id, 'info', 'Handed to a worker again: delivery ' .. deliveries .. '.')
    end
    redis.call('HSET', key, 'status', 'running', 'fence', fence, 'node', node)
    if not started_ms then
      redis.call('HSET', key, 'started_ms', now)
      table.insert(news, id .. ' started')
      queue_webhook(id, hook_events, 'started', now)
    end
    redis.call('RPUSH', claim, id)
    table.insert(reply, row(id, task, batched, bytes, deliveries, created_ms, suspect, files, in_blob))
    if suspect then break end
  end
end
if #reply > 2 then redis.call('PEXPIRE', claim, lease_ms * 6) end
reply[1] = redis.call('ZCARD', ready)
if #reply == 2 and reply[1] == 0 and linger_ms > 0 and not other_models_wait() then
  reply[2] = 1
  redis.call('DEL', K.wake .. node)
  for _, key in ipairs({K.idle .. model, K.lingering}) do
    redis.call('SADD', key, node)
    -- If the node dies while it lingers, this entry expires soon.
    redis.call('PEXPIRE', key, linger_ms + 1000)
  end
end
return publish({reply, unreported})
