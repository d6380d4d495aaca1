#!lua flags=allow-oom
-- Removes files whose time is over and that no job refers to. Content in the blob store becomes trash.
-- Returns the names in the blob store that are due for deletion. The caller deletes them, then removes them from the
-- trash.
local now = now_ms()
for _, file in ipairs(redis.call('ZRANGE', K.files, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most)) do
  local refs = redis.call('HGET', K.file .. file, 'refs')
  if tonumber(refs or 0) > 0 then
    redis.call('ZADD', K.files, now + math.min(file_ttl_ms, 60000), file)
  else
    drop_file(file, now)
  end
end
return redis.call('ZRANGE', K.trash, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most)
