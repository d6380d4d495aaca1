#!lua flags=allow-oom
-- Extends leases. ARGV: lease ms, then id, fence, id, fence, …
-- Returns {lost ids, ids asked to cancel}: a lost job belongs to somebody else by now, or has ended.
local now = now_ms()
local lease_ms = tonumber(ARGV[1])
local lost, cancel = {}, {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local job = redis.call('HMGET', K.job .. id, 'fence', 'cancel')
  if job[1] == ARGV[i + 1] and redis.call('ZSCORE', K.leases, id) then
    redis.call('ZADD', K.leases, now + lease_ms, id)
    if job[2] then table.insert(cancel, id) end
  else
    table.insert(lost, id)
  end
end
return {lost, cancel}
