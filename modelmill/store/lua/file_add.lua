-- Gives a file whose content has been written to its owner. Safe to replay.
-- ARGV: id, owner, ttl ms, field, value, …
-- Returns {created ms, expires ms}; nothing when its room or its content is gone.
local id, key, now = ARGV[1], K.file .. ARGV[1], now_ms()
local known = redis.call('HMGET', key, 'bytes', 'blob')
if not known[1] or not known[2] and redis.call('EXISTS', K.blob .. id) == 0 then return {} end
redis.call('PERSIST', K.blob .. id)
redis.call('HSET', key, 'owner', ARGV[2], 'created_ms', now, 'expires_ms', now + tonumber(ARGV[3]), unpack(ARGV, 4))
redis.call('ZADD', K.files, now + tonumber(ARGV[3]), id)
return {now, now + tonumber(ARGV[3])}
