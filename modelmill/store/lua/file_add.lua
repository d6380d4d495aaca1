-- Gives a file to its owner, after its content was written. Safe to replay. Field, value, … follow the arguments.
-- Returns {created ms, expires ms}; nothing if the reservation or the content is gone.
local key, now = K.file .. id, now_ms()
local bytes, blob = read(key, 'bytes', 'blob')
if not bytes or not blob and redis.call('EXISTS', K.blob .. id) == 0 then return {} end
redis.call('PERSIST', K.blob .. id)
redis.call('HSET', key, 'owner', owner, 'created_ms', now, 'expires_ms', now + ttl_ms, unpack(ARGV, FIRST))
redis.call('ZADD', K.files, now + ttl_ms, id)
return {now, now + ttl_ms}
