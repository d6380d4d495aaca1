#!lua flags=allow-oom
-- Ends or gives back claimed jobs, under their fences. A replay with the same fence is a success.
-- Each group says what became of one job:
--   `outcome`: complete, failed or canceled (terminal); released (back to the queue; does not count as a delivery);
--     suspect (back to the queue, to run alone: it was in progress when its child died); or crashed (it was in
--     progress alone when its child died; the third crash ends it).
--   `where`: where the result is: '' (there is none), inline, beside (in a key of its own) or blob.
--   `result`: the result, or its name in the blob store. With crashed: the index of the item of a batched job. The
--     third crash of an item fails this item only. Index -1 means that the child died while it opened the job; then
--     the third crash fails the whole job.
--   `field_count`: how many pairs of field, value follow the group.
-- Returns {verdicts, unreported ends}. A verdict is one of `Settlement` in records.py: ok; refused; or missing (a
-- result beside the record is gone). The caller logs the ends that it asked for by itself.
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
    requeue(id, now, result_ttl_ms, opening and DIED_OPENING or DIED)
  elseif opening then
    fail(id, now, result_ttl_ms, 'worker_crashed', CRASHED_OPENING)
  elseif redis.call('HGET', key, 'batched') == '1' then
    -- This item has failed. The other items are no longer suspects, and the job goes on without this item.
    local part = {error = {code = 'worker_crashed', message = CRASHED, retryable = retryable('worker_crashed')}}
    redis.call('HSET', K.parts .. id, item, cjson.encode(part))
    redis.call('HDEL', key, 'suspect')
    -- The crashes of this item do not count as deliveries of the job: one together with others, and those alone.
    -- The count stays above 0, which would mean that no worker has run the job yet.
    redis.call('HSET', key, 'deliveries', math.max(1, redis.call('HGET', key, 'deliveries') - MAX_CRASHES - 1))
    requeue(id, now, result_ttl_ms, CRASHED .. ' The other items of the job go on.')
  else
    fail(id, now, result_ttl_ms, 'worker_crashed', CRASHED)
  end
end

local function released(id)
  local key = K.job .. id
  if redis.call('HINCRBY', key, 'deliveries', -1) == 0 and redis.call('EXISTS', K.parts .. id) == 0 then
    -- No worker has run any of it, so it has not started and its deadline counts again. Followers have already seen
    -- `started`; `given_back` records that.
    redis.call('HDEL', key, 'started_ms')
    redis.call('HSET', key, 'given_back', '1')
    local deadline_ms = redis.call('HGET', key, 'deadline_ms')
    if deadline_ms then redis.call('ZADD', K.deadlines, deadline_ms, id) end
  end
  requeue(id, now, result_ttl_ms, 'The worker gave the job back. It waits in the queue again.')
end

local function settle(job, fields)
  local id, outcome = job.id, job.outcome
  local fence, finished_ms, ttl_ms = read(K.job .. id, 'fence', 'finished_ms', 'ttl_ms')
  if fence ~= job.fence then return 'refused' end
  if finished_ms then return 'ok' end
  if not redis.call('ZSCORE', K.leases, id) then return 'refused' end
  if outcome == 'released' then
    released(id)
    return 'ok'
  elseif outcome == 'suspect' then
    redis.call('HSET', K.job .. id, 'suspect', '1')
    requeue(id, now, result_ttl_ms, DIED)
    return 'ok'
  elseif outcome == 'crashed' then
    crashed(id, job.result)
    return 'ok'
  end
  if job.where == 'inline' then
    table.insert(fields, 'result')
    table.insert(fields, job.result)
  elseif job.where == 'beside' then
    local out = K.out .. id .. ':' .. fence
    if redis.call('PEXPIRE', out, tonumber(ttl_ms or result_ttl_ms)) == 0 then return 'missing' end
    table.insert(fields, 'out')
    table.insert(fields, out)
  elseif job.where == 'blob' then
    table.insert(fields, 'out_blob')
    table.insert(fields, job.result)
    redis.call('ZADD', K.trash, now + tonumber(ttl_ms or result_ttl_ms), job.result)
  end
  finish(id, now, result_ttl_ms, outcome, fields)
  return 'ok'
end

local i = FIRST
while i <= #ARGV do
  local job = group(i)
  local next_group = i + STEP + 2 * tonumber(job.field_count)
  local fields = {}
  for j = i + STEP, next_group - 1 do table.insert(fields, ARGV[j]) end
  table.insert(verdicts, settle(job, fields))
  i = next_group
end
return publish({verdicts, unreported})
