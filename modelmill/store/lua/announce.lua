#!lua flags=allow-oom
-- Says what a part of a node is. ARGV: node, part, document, ttl ms. A script, so that a full server knows its nodes.
redis.call('HSET', K.node .. ARGV[1], ARGV[2], ARGV[3])
redis.call('PEXPIRE', K.node .. ARGV[1], ARGV[4])
redis.call('SADD', K.nodes, ARGV[1])
