#!lua flags=allow-oom
-- Says what became of a webhook that was taken. ARGV: id, event, leased until, verdict, delay ms, attempt
-- with verdict later (not tried; attempt is empty), again (failed: due after the delay), over (sent, or
-- given up), or stop (the receiver wants nothing more of this job). `attempt` is JSON for the log.
-- Returns 1; or 0 where the lease is not ours any more, or the job was deleted.
local id, event, lease, verdict = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local delay_ms, attempt = tonumber(ARGV[5]), ARGV[6]
local hooks, hooklog, member = K.hooks .. id, K.hooklog .. id, id .. ' ' .. event
if tonumber(redis.call('ZSCORE', K.outbox, member) or -1) ~= tonumber(lease) then return 0 end
local now = now_ms()
local EVENTS = {'started', 'progress', 'ended'}

local function close(each)
  redis.call('ZREM', K.outbox, id .. ' ' .. each)
  redis.call('HDEL', hooks, 'body:' .. each, 'tries:' .. each)
end

local function waits()
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
  close(event)
  redis.call('HINCRBY', hooks, 'sent:' .. event, 1)
elseif verdict == 'stop' then
  for _, each in ipairs(EVENTS) do close(each) end
  redis.call('HSET', hooks, 'stopped', '1')
end
redis.call('RPUSH', hooklog, cjson.encode(entry))
redis.call('LTRIM', hooklog, -50, -1)
local ttl_ms = HOOK_TTL_MS
if entry.outcome == 'delivered' and redis.call('HEXISTS', hooks, 'status') == 1 and not waits() then
  -- All went well: there is nothing to look up once the job is forgotten.
  ttl_ms = math.max(redis.call('PTTL', K.job .. id), 3600 * 1000)
end
redis.call('PEXPIRE', hooklog, ttl_ms)
redis.call('PEXPIRE', hooks, ttl_ms)
return 1
