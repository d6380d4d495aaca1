#!lua flags=allow-oom
-- What has become garbage outside of the records. ARGV: file ttl ms, at most
-- Files whose time is over, and which no job refers to, go; content that lies in the blob store is noted as trash.
-- Returns the names in the blob store that are to be deleted now; `swept` forgets them when that is done.
local now, ttl_ms, at_most = now_ms(), tonumber(ARGV[1]), tonumber(ARGV[2])
for _, file in ipairs(redis.call('ZRANGE', K.files, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most)) do
  local known = redis.call('HMGET', K.file .. file, 'refs', 'bytes', 'blob')
  if tonumber(known[1] or 0) > 0 then
    redis.call('ZADD', K.files, now + math.min(ttl_ms, 60000), file)
  else
    drop_file(file, now)
  end
end
return redis.call('ZRANGE', K.trash, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most)
