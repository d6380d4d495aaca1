#!lua flags=allow-oom
-- Records what became of a webhook that was taken. `verdict` is one of `_Verdict` in webhooks.py: later (not tried;
-- `attempt` is empty), again (failed; due after the delay), over (sent or given up), or stop (the receiver wants no
-- more webhooks of this job). `attempt` is JSON for the log.
-- Returns 1; 0 if this lease is over, or the job was deleted.
local hooks, hook_log, member = K.hooks .. id, K.hook_log .. id, id .. ' ' .. event
if tonumber(redis.call('ZSCORE', K.outbox, member) or -1) ~= leased_until_ms then return 0 end
local now = now_ms()
local EVENTS = {'started', 'progress', 'ended'}

local function drop(each)
  redis.call('ZREM', K.outbox, id .. ' ' .. each)
  redis.call('HDEL', hooks, 'body:' .. each, 'tries:' .. each)
end

local function one_waits()
  for _, each in ipairs(EVENTS) do
    if redis.call('ZSCORE', K.outbox, id .. ' ' .. each) then return true end
  end
end

if verdict == 'later' or verdict == 'again' then
  redis.call('ZADD', K.outbox, now + delay_ms, member)
end
if attempt == '' then return 1 end
local entry = cjson.decode(attempt)
entry.attempt = redis.call('HINCRBY', hooks, 'tries:' .. event, 1)
entry.at_ms = now
if verdict == 'again' then
  entry.next_ms = now + delay_ms
elseif verdict == 'over' then
  drop(event)
  redis.call('HINCRBY', hooks, 'sent:' .. event, 1)
elseif verdict == 'stop' then
  for _, each in ipairs(EVENTS) do drop(each) end
  redis.call('HSET', hooks, 'stopped', '1')
end
redis.call('RPUSH', hook_log, cjson.encode(entry))
redis.call('LTRIM', hook_log, -50, -1)
local ttl_ms = K.hook_ttl_ms
if entry.outcome == 'delivered' and redis.call('HEXISTS', hooks, 'status') == 1 and not one_waits() then
  -- All webhooks of the job were delivered. When the job is forgotten, its log is no longer needed.
  ttl_ms = math.max(redis.call('PTTL', K.job .. id), 3600 * 1000)
end
redis.call('PEXPIRE', hook_log, ttl_ms)
redis.call('PEXPIRE', hooks, ttl_ms)
return 1
