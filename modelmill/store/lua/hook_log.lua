-- Returns the caller of a job (empty if unknown), and the attempts to send the job's webhooks, oldest first.
local kept_caller = redis.call('HGET', K.hooks .. id, 'caller')
local caller, gone = read(K.job .. id, 'caller', 'gone')
return {not gone and (caller or kept_caller) or '', redis.call('LRANGE', K.hook_log .. id, 0, -1)}
