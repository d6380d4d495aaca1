-- Keeps the body of a webhook, so that each attempt sends the same bytes.
-- Returns the body that was kept first; empty if this lease is over, or the job was deleted.
if tonumber(redis.call('ZSCORE', K.outbox, id .. ' ' .. event) or -1) ~= leased_until_ms then return '' end
redis.call('HSETNX', K.hooks .. id, 'body:' .. event, body)
redis.call('PEXPIRE', K.hooks .. id, K.hook_ttl_ms)
return redis.call('HGET', K.hooks .. id, 'body:' .. event)
