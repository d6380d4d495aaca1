#!lua flags=allow-oom
-- Extends leases. ARGV: lease ms, then id, fence, progress for each, where progress is JSON or empty.
-- Returns {lost ids, ids asked to cancel}: a lost job belongs to somebody else by now, or has ended.
local now = now_ms()
local lease_ms = tonumber(ARGV[1])
local lost, cancel, renewed = {}, {}, {}
for i = 2, #ARGV, 3 do
  local id = ARGV[i]
  local job = redis.call('HMGET', K.job .. id, 'fence', 'cancel', 'hook_events')
  if job[1] == ARGV[i + 1] and redis.call('ZSCORE', K.leases, id) then
    redis.call('ZADD', K.leases, now + lease_ms, id)
    if not renewed[job[1]] then
      -- What the claim took must be known for as long as some of it is held.
      redis.call('PEXPIRE', K.claim .. job[1], lease_ms * 6)
      renewed[job[1]] = true
    end
    if ARGV[i + 2] ~= '' then
      redis.call('HSET', K.job .. id, 'progress', ARGV[i + 2])
      happened(id, 'progress', ARGV[i + 2])
      hook(id, job[3], 'progress', now + 500)
    end
    if job[2] then table.insert(cancel, id) end
  else
    table.insert(lost, id)
  end
end
return told({lost, cancel})
