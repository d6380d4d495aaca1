#!lua flags=allow-oom
-- Raises the version of the key layout to `version`, if the store holds an earlier one or none.
-- Returns the version that the store holds now: a later one stays, and so does a word that is no number.
local found = redis.call('GET', K.layout)
if not found or (string.match(found, '^%d+$') and tonumber(found) < version) then
  redis.call('SET', K.layout, version)
  found = tostring(version)
end
return found
