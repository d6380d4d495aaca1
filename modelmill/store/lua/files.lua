-- Shared by the scripts that remove files.

-- Removes an uploaded file.
local function drop_file(file, now)
  local bytes, blob = read(K.file .. file, 'bytes', 'blob')
  if bytes then redis.call('HINCRBY', K.totals, 'file_bytes', -tonumber(bytes)) end
  if blob then redis.call('ZADD', K.trash, now, blob) end
  redis.call('UNLINK', K.file .. file, K.blob .. file)
  redis.call('ZREM', K.files, file)
end
