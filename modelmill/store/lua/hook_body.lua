-- Keeps what a webhook sends, so that each attempt sends the very same. ARGV: id, event, leased until, body
-- Returns what was kept first; empty where the lease is not ours any more, or the job was deleted.
local id, event, lease, body = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if tonumber(redis.call('ZSCORE', K.outbox, id .. ' ' .. event) or -1) ~= tonumber(lease) then return '' end
redis.call('HSETNX', K.hooks .. id, 'body:' .. event, body)
redis.call('PEXPIRE', K.hooks .. id, HOOK_TTL_MS)
return redis.call('HGET', K.hooks .. id, 'body:' .. event)
