#!lua flags=allow-oom
-- Ends or gives back many claimed jobs. Only the fence that holds a lease may, and a replay by the
-- same fence is a success. ARGV: result ttl ms, then for each job
--   id, fence, outcome, where the result is ('', 'inline', 'beside', 'blob'), result or its name in the blob
--   store, n, n × (field, value)
-- with outcome complete, failed or canceled (terminal); released (back to the queue, uncharged); suspect (back,
-- to run alone: it was in a forward pass when its process died); or crashed (it was there alone: the third
-- time ends it; ARGV result says which item of a batched job, which then has failed and is left out, or -1 if
-- the process was opening the job: then all of it fails).
-- Returns {verdicts, ends to log}, a verdict being ok, refused, or missing (a result beside the record that is not
-- there). Ends that the caller asked for are its own to log.
local ttl_ms = tonumber(ARGV[1])
local now = now_ms()
local verdicts = {}

local MAX_CRASHES = 3
local CRASHED = 'The worker process died while it ran this input alone, ' .. MAX_CRASHES .. ' times.'
local CRASHED_OPENING = 'The worker process died while it opened this job alone, ' .. MAX_CRASHES .. ' times.'

local DIED = 'The worker process died while it ran the job. It waits in the queue again, to run alone.'
local DIED_OPENING = 'The worker process died while it opened the job. It waits in the queue again, to run alone.'

local function crashed(id, item)
  local key, opening = K.job .. id, item == '-1'
  redis.call('HSET', key, 'suspect', '1')
  if redis.call('HINCRBY', key, 'crashes:' .. item, 1) < MAX_CRASHES then
    requeue(id, now, ttl_ms, opening and DIED_OPENING or DIED)
  elseif opening then
    fail(id, now, ttl_ms, 'worker_crashed', CRASHED_OPENING, false)
  elseif redis.call('HGET', key, 'batched') == '1' then
    -- The item is convicted and its fellows are cleared; the others of the job go on without it.
    local verdict = {error = {code = 'worker_crashed', message = CRASHED, retryable = false}}
    redis.call('HSET', K.parts .. id, item, cjson.encode(verdict))
    redis.call('HDEL', key, 'suspect')
    -- Nor do its deaths count against the job: one in company, and those alone. None at all would mean that
    -- nobody has run it yet.
    redis.call('HSET', key, 'deliveries', math.max(1, redis.call('HGET', key, 'deliveries') - MAX_CRASHES - 1))
    requeue(id, now, ttl_ms, CRASHED .. ' The other items of the job go on.')
  else
    fail(id, now, ttl_ms, 'worker_crashed', CRASHED, false)
  end
end

local function released(id)
  local key = K.job .. id
  if redis.call('HINCRBY', key, 'deliveries', -1) == 0 and redis.call('EXISTS', K.parts .. id) == 0 then
    -- Nobody has run any of it: it has not started, and its deadline stands. Who follows it was told otherwise.
    redis.call('HDEL', key, 'started_ms')
    redis.call('HSET', key, 'given_back', '1')
    local deadline_ms = redis.call('HGET', key, 'deadline_ms')
    if deadline_ms then redis.call('ZADD', K.deadlines, deadline_ms, id) end
  end
  requeue(id, now, ttl_ms, 'The worker gave the job back. It waits in the queue again.')
end

local function settle(id, fence, outcome, where, result, fields)
  local job = redis.call('HMGET', K.job .. id, 'fence', 'finished_ms', 'ttl_ms')
  if job[1] ~= fence then return 'refused' end
  if job[2] then return 'ok' end
  if not redis.call('ZSCORE', K.leases, id) then return 'refused' end
  if outcome == 'released' then
    released(id)
    return 'ok'
  elseif outcome == 'suspect' then
    redis.call('HSET', K.job .. id, 'suspect', '1')
    requeue(id, now, ttl_ms, DIED)
    return 'ok'
  elseif outcome == 'crashed' then
    crashed(id, result)
    return 'ok'
  end
  if where == 'inline' then
    table.insert(fields, 'result')
    table.insert(fields, result)
  elseif where == 'beside' then
    local out = K.out .. id .. ':' .. fence
    if redis.call('PEXPIRE', out, tonumber(job[3] or ttl_ms)) == 0 then return 'missing' end
    table.insert(fields, 'out')
    table.insert(fields, out)
  elseif where == 'blob' then
    table.insert(fields, 'out_blob')
    table.insert(fields, result)
    redis.call('ZADD', K.trash, now + tonumber(job[3] or ttl_ms), result)
  end
  finish(id, now, ttl_ms, outcome, fields)
  return 'ok'
end

local i = 2
while i <= #ARGV do
  local count = tonumber(ARGV[i + 5])
  local fields = {}
  for j = i + 6, i + 5 + 2 * count do table.insert(fields, ARGV[j]) end
  table.insert(verdicts, settle(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], fields))
  i = i + 6 + 2 * count
end
return told({verdicts, unlogged})
