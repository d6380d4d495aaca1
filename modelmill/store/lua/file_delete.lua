#!lua flags=allow-oom
-- Takes a file from its owner. Its content goes at once, or as soon as no job refers to it.
-- Returns deleted, or missing.
local key, now = K.file .. id, now_ms()
local current_owner, refs = read(key, 'owner', 'refs')
if current_owner ~= owner then return 'missing' end
if tonumber(refs or 0) > 0 then
  redis.call('HSET', key, 'owner', '')
  redis.call('ZADD', K.files, now, id)
else
  drop_file(id, now)
end
return 'deleted'
