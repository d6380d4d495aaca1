"""Every key that the project keeps in Redis, in one place. Lua gets the same names through ``LUA_TABLE``.

One primary Redis or Valkey, 7 or newer; not a Cluster, since a script touches keys of several slots.
"""

from __future__ import annotations

PREFIX = "mm:"

JOB = PREFIX + "job:"
"""``job:{id}``: hash, the record; small fields, and the result while it is at most ``INLINE_BYTES``."""
IN = PREFIX + "in:"
"""``in:{id}``: string, the request body as it came. Expires by itself until ``submit`` makes it stay."""
OUT = PREFIX + "out:"
"""``out:{id}:{fence}``: string, a result above ``INLINE_BYTES``. Named after the fence, so that a worker
which lost its lease cannot overwrite what the next one wrote. Expires by itself until ``settle`` takes it."""
PARTS = PREFIX + "parts:"
"""``parts:{id}``: hash of a batched job's finished items, index → JSON. A retry leaves those out."""
READY = PREFIX + "ready:"
"""``ready:{model}``: sorted set of job ids; score = lane rank × 2^50 + sequence number."""
LEASES = PREFIX + "leases"
"""Sorted set: id → expiry, milliseconds of Redis ``TIME``. Exactly the running jobs."""
DEADLINES = PREFIX + "deadlines"
"""Sorted set: id → the time after which a job that has not started fails as expired."""
CLAIM = PREFIX + "claim:"
"""``claim:{fence}``: list of the ids that one claim took, so that a replayed claim gets the same."""
IDEMPOTENCY = PREFIX + "idem:"
"""``idem:{caller}:{key}``: string, ``{id} {body hash}``."""
RUNG = PREFIX + "rung:"
"""``rung:{model}``: a bell was sent lately. Who sets it rings; ``drain`` clears it when it starts."""
IDLE = PREFIX + "idle:"
"""``idle:{model}``: set of nodes whose drain has emptied the model's queue and lingers: no bell is needed."""
LINGERING = PREFIX + "lingering"
"""Set: nodes whose drain lingers, on whichever model."""
WAKE = PREFIX + "wake:"
"""``wake:{node}``: list that a lingering drain blocks on: ``go``, there is work, or ``leave``, elsewhere."""
MODELS = PREFIX + "models"
"""Set: models that may have ready jobs."""
TURNS = PREFIX + "turns"
"""Hash: model → claims too small to hold a place for every lane."""
MEMORY = PREFIX + "memory"
"""Whether the server is near its memory limit; kept for a moment."""
RATES = PREFIX + "rates"
"""Hash: model → jobs a second of one worker, for estimates."""
SIZING = PREFIX + "sizing"
"""Hash: ``{model}|{device}`` → what was learned of the batch size there, JSON."""
SEQUENCE = PREFIX + "seq"
"""Counter behind the order within a lane."""
TOTALS = PREFIX + "totals"
"""Hash: ``jobs`` and ``bytes`` of all jobs that have not ended."""
COUNTERS = PREFIX + "counters"
"""Hash: ``{task}|{model}|{status}`` → jobs that ended so, ever. A worker's own counters die with it."""
REAPER = PREFIX + "reaper"
"""Hash: ``run_id`` of the server seen last, and until when a restart gives leases grace."""
ENDED_CHANNEL = PREFIX + "ended"
"""Publish channel: ``{id} {status}`` for each terminal write; a line each, where one script made several."""
NODES = PREFIX + "nodes"
"""Set: names of worker nodes."""
NODE = PREFIX + "node:"
"""``node:{name}``: hash that expires unless renewed: ``parent`` and ``child``, what each says of itself."""
STARTING = PREFIX + "starting:"
"""``starting:{model}``: somebody asked for the model to be loaded, and no worker has begun yet."""

WAKE_TTL_MS = 2000
"""How long a call in ``wake:{node}`` waits for a node that does not linger any more."""
INLINE_BYTES = 64 * 1024
"""Results up to this size live in the record and pass through Lua; larger ones lie beside it."""

LUA_TABLE = (
    "local K = {"
    f"job='{JOB}', input='{IN}', out='{OUT}', ready='{READY}', leases='{LEASES}', deadlines='{DEADLINES}', "
    f"claim='{CLAIM}', idem='{IDEMPOTENCY}', rung='{RUNG}', models='{MODELS}', seq='{SEQUENCE}', "
    f"totals='{TOTALS}', counters='{COUNTERS}', reaper='{REAPER}', ended='{ENDED_CHANNEL}', "
    f"idle='{IDLE}', lingering='{LINGERING}', wake='{WAKE}', wake_ms={WAKE_TTL_MS}, "
    f"parts='{PARTS}', turns='{TURNS}', memory='{MEMORY}'"
    "}"
)


def out(job_id: str, fence: str) -> str:
    return f"{OUT}{job_id}:{fence}"
