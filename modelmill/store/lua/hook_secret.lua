-- Returns the secret that signs a caller's webhooks, and the secret before it while that is still valid.
-- `fresh` becomes the secret if the caller has none, or if `rotate` is 1. An old secret is valid for `old_ms`.
local now, old = now_ms(), caller .. ' old'
redis.call('HSETNX', K.hook_secrets, caller, fresh)
local key = redis.call('HGET', K.hook_secrets, caller)
if rotate == '1' and key ~= fresh then
  redis.call('HSET', K.hook_secrets, caller, fresh, old, (now + old_ms) .. ' ' .. key)
  key = fresh
end
local before = redis.call('HGET', K.hook_secrets, old)
if before then
  local valid_until_ms, previous = string.match(before, '^(%S+) (%S+)$')
  if tonumber(valid_until_ms) > now then return {key, previous} end
  redis.call('HDEL', K.hook_secrets, old)
end
return {key}
