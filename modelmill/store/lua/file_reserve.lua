-- Reserves room for a file before its content is written. Safe to replay.
-- `max_bytes` is for all files together. After `write_ms` the reservation goes, unless `file_add` was called. `blob`
-- names the content in the blob store, and is empty if the content lies in Redis.
-- The file has no owner yet, so no caller finds it. Returns ok, or full.
local key = K.file .. id
if redis.call('EXISTS', key) == 1 then return 'ok' end
if tonumber(redis.call('HGET', K.totals, 'file_bytes') or 0) + bytes > max_bytes then return 'full' end
redis.call('HSET', key, 'owner', '', 'bytes', bytes, 'refs', 0)
if blob ~= '' then redis.call('HSET', key, 'blob', blob) end
redis.call('ZADD', K.files, now_ms() + write_ms, id)
redis.call('HINCRBY', K.totals, 'file_bytes', bytes)
return 'ok'
