-- The attempts to send a job's webhooks, oldest first. ARGV: id. Returns the job's caller, if known, and them.
local kept = redis.call('HGET', K.hooks .. ARGV[1], 'caller')
local job = redis.call('HMGET', K.job .. ARGV[1], 'caller', 'gone')
local caller = not job[2] and (job[1] or kept) or ''
return {caller, redis.call('LRANGE', K.hooklog .. ARGV[1], 0, -1)}
