-- Shared by the scripts that wake lingering drains.

local function wake(node, word)
  redis.call('RPUSH', K.wake .. node, word)
  redis.call('PEXPIRE', K.wake .. node, K.wake_ttl_ms)
end

-- Wakes one drain that lingers on the model, if there is one. Returns whether there was one.
local function wake_idle(model)
  local node = redis.call('SPOP', K.idle .. model)
  if not node then return false end
  redis.call('SREM', K.lingering, node)
  wake(node, 'go')
  return true
end

-- A bell is about to be sent, and a lingering drain may hold the child that the bell needs.
local function send_away()
  for _, node in ipairs(redis.call('SMEMBERS', K.lingering)) do wake(node, 'leave') end
  redis.call('DEL', K.lingering)
end
