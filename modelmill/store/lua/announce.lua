#!lua flags=allow-oom
-- Writes what one part of a node (its parent or its child) says of itself. `document` is JSON.
-- This is a script because a plain HSET is refused on a full server, and nodes must stay known there.
redis.call('HSET', K.node .. node, part, document)
redis.call('PEXPIRE', K.node .. node, ttl_ms)
redis.call('SADD', K.nodes, node)
