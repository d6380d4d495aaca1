-- Shared by all scripts. Further shared files are those that a script names in a line `-- include: …`: they hold only
-- what some scripts need, because each call of a script makes its functions anew.
-- Before this file, scripts.py puts:
--   K: the keys and constants of keys.py that the script uses, named in lower case
--   retryable(code): whether a retry may help after this error, from errors.py; only with `ends`
-- and after the shared files, one local for each argument of the script, from arguments.py.
-- All times are milliseconds of Redis TIME. No other clock counts.

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The fields of a hash, in the order in which they are named; false for a missing one. Name the locals like the
-- fields: `local fence, cancel = read(key, 'fence', 'cancel')`. A table by name is slower: 4.6 µs for 14 fields, against
-- 3.3 µs.
local function read(key, ...)
  return unpack(redis.call('HMGET', key, ...))
end

-- All events of one script are published in one message per channel, by `return publish(reply)`. Ends have a channel
-- of their own, since most subscribers wait for an end only.
local ended, news, webhook_queued = {}, {}, false
-- Ends that no worker reported, so no worker logs them. The process that called the script logs them.
local unreported = {}
local function publish(reply)
  if #ended > 0 then redis.call('PUBLISH', K.ended_channel, table.concat(ended, '\n')) end
  if webhook_queued then table.insert(news, '- hook') end
  if #news > 0 then redis.call('PUBLISH', K.news_channel, table.concat(news, '\n')) end
  return reply
end

-- Puts a webhook into the outbox, if the job asked for this event. If one already waits, it stands for both.
local function queue_webhook(id, hook_events, event, due_ms)
  if hook_events and string.find(hook_events, ',' .. event .. ',', 1, true) then
    redis.call('ZADD', K.outbox, 'NX', due_ms, id .. ' ' .. event)
    webhook_queued = true
  end
end

-- Adds an event to the stream that followers of the job read. `data` is JSON.
local function add_event(id, event, data)
  redis.call('XADD', K.events .. id, 'MAXLEN', '~', 200, '*', 'type', event, 'data', data)
  table.insert(news, id .. ' ' .. event)
end

local function add_log(id, level, message)
  add_event(id, 'log', cjson.encode({level = level, message = message}))
end
