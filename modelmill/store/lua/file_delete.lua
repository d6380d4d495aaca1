#!lua flags=allow-oom
-- Takes a file from its owner. ARGV: id, owner
-- Its content goes at once, or when no job refers to it any more. Returns deleted, or missing.
local id, key, now = ARGV[1], K.file .. ARGV[1], now_ms()
local known = redis.call('HMGET', key, 'owner', 'refs')
if known[1] ~= ARGV[2] then return 'missing' end
if tonumber(known[2] or 0) > 0 then
  redis.call('HSET', key, 'owner', '')
  redis.call('ZADD', K.files, now, id)
else
  drop_file(id, now)
end
return 'deleted'
