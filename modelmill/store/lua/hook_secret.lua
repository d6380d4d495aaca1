-- What a caller's webhooks are signed with. ARGV: caller, a fresh key, whether to rotate, ms that the old one counts on
-- Returns the key, and the one before it while that counts.
local caller, fresh, rotate, old_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local now, old = now_ms(), caller .. ' old'
redis.call('HSETNX', K.hooksecrets, caller, fresh)
local key = redis.call('HGET', K.hooksecrets, caller)
if rotate == '1' and key ~= fresh then
  redis.call('HSET', K.hooksecrets, caller, fresh, old, (now + old_ms) .. ' ' .. key)
  key = fresh
end
local before = redis.call('HGET', K.hooksecrets, old)
if before then
  local ends, previous = string.match(before, '^(%S+) (%S+)$')
  if tonumber(ends) > now then return {key, previous} end
  redis.call('HDEL', K.hooksecrets, old)
end
return {key}
