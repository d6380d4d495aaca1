-- Takes room for a file before its content is written. Safe to replay.
-- ARGV: id, bytes, bytes that all files may hold, ms after which it goes unless it was added, where its content
--   lies in the blob store (or empty)
-- Nobody owns it yet, so nobody finds it. Returns ok, or full.
local id, bytes = ARGV[1], tonumber(ARGV[2])
local key = K.file .. id
if redis.call('EXISTS', key) == 1 then return 'ok' end
if tonumber(redis.call('HGET', K.totals, 'file_bytes') or 0) + bytes > tonumber(ARGV[3]) then return 'full' end
redis.call('HSET', key, 'owner', '', 'bytes', bytes, 'refs', 0)
if ARGV[5] ~= '' then redis.call('HSET', key, 'blob', ARGV[5]) end
redis.call('ZADD', K.files, now_ms() + tonumber(ARGV[4]), id)
redis.call('HINCRBY', K.totals, 'file_bytes', bytes)
return 'ok'
