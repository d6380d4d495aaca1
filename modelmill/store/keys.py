"""All keys that the project keeps in Redis. Lua scripts read the same constants, through ``lua_table``.

One primary Redis or Valkey, 7 or newer. A Cluster does not work, because a script touches keys of
several slots.

A change here that an older release cannot read raises ``LAYOUT_VERSION`` (decision 24).
"""

from __future__ import annotations

import re

PREFIX = "mm:"

LAYOUT = PREFIX + "layout"
"""String: the version of this layout. At start, each API and worker raises it to its own. Never expires."""
LAYOUT_VERSION = 2
"""The version that this release writes. It also reads version 1, in which a finished item has no warnings,
and an idempotency key has its time from the start."""

JOB = PREFIX + "job:"
"""``job:{id}``: hash, the record: small fields, and the result if it has at most ``INLINE_BYTES``."""
INPUT = PREFIX + "in:"
"""``in:{id}``: string, the request body as it came. Expires, until ``submit`` makes it permanent."""
OUT = PREFIX + "out:"
"""``out:{id}:{fence}``: string, a result above ``INLINE_BYTES``. The fence is part of the name, so that
a worker which lost its lease cannot overwrite the result of the next one. Expires, until ``settle``
takes it."""
PARTS = PREFIX + "parts:"
"""``parts:{id}``: hash of a batched job's finished items, index → JSON, and after a line end the item's
warnings, if it has some. A retry does not run these items again."""
READY = PREFIX + "ready:"
"""``ready:{model}``: sorted set of job ids; score = lane rank × ``LANE_SPAN`` + sequence number."""
LEASES = PREFIX + "leases"
"""Sorted set: id → expiry, milliseconds of Redis ``TIME``. It holds exactly the running jobs."""
DEADLINES = PREFIX + "deadlines"
"""Sorted set: id → the time after which a job that has not started fails as expired."""
CLAIM = PREFIX + "claim:"
"""``claim:{fence}``: list of the ids that one claim took, so that a replayed claim returns the same ids."""
IDEMPOTENCY = PREFIX + "idem:"
"""``idem:{caller}:{key}``: string, ``{id} {body hash}``. It expires with the job's record, and not before the
setting's time is over. Void when the job is gone."""
BELL_SENT = PREFIX + "rung:"
"""``rung:{model}``: string that expires: a bell is on its way. The process that sets it sends the bell;
the drain deletes it when it starts."""
IDLE = PREFIX + "idle:"
"""``idle:{model}``: set of nodes whose drain lingers at the model's empty queue. They need no bell."""
LINGERING = PREFIX + "lingering"
"""Set: nodes whose drain lingers, on any model."""
WAKE = PREFIX + "wake:"
"""``wake:{node}``: list of wake words, on which a lingering drain blocks (``Wake``)."""
MODELS = PREFIX + "models"
"""Set: models that may have ready jobs."""
TURNS = PREFIX + "turns"
"""Hash: model → claims that found jobs of more than one lane."""
MEMORY = PREFIX + "memory"
"""String that expires: 1 if the server is near its memory limit, else 0."""
RATES = PREFIX + "rates"
"""Hash: model → jobs a second of one worker, for estimates."""
SIZING = PREFIX + "sizing"
"""Hash: ``{model}|{device}`` → the batch size that was learned there, JSON; ``{model}|{device}|memory`` → the
memory that the model takes when it is loaded there, MiB."""
SEQUENCE = PREFIX + "seq"
"""Counter behind the order within a lane."""
TOTALS = PREFIX + "totals"
"""Hash: ``jobs`` and ``bytes`` of all jobs that have not ended; ``file_bytes`` of all files."""
COUNTERS = PREFIX + "counters"
"""Hash: ``{task}|{model}|{status}`` → all jobs that ever ended so. The counters of a worker are lost
when it ends."""
JOBS = PREFIX + "jobs:"
"""``jobs:{caller}``: sorted set of all jobs of a caller that can be read; score = sequence number."""
EXPIRING = PREFIX + "expiring"
"""Sorted set: ``{id} {caller}`` of ended jobs → when their record expires, ms. The reaper then removes
them from ``jobs:{caller}``."""
OPEN = PREFIX + "open"
"""Hash: caller → number of its jobs that have not ended."""
RATE = PREFIX + "rate:"
"""``rate:{caller}``: string, when the caller's next job is due at its rate, ms."""
EVENTS = PREFIX + "events:"
"""``events:{id}``: stream of a job's events between its start and its end: ``type``, ``data`` (JSON).
Start and end themselves are in the record."""
OUTBOX = PREFIX + "outbox"
"""Sorted set: ``{id} {event}`` of webhooks to send → when the next attempt is due, ms."""
HOOKS = PREFIX + "hooks:"
"""``hooks:{id}``: hash, what webhooks need after the record has expired: ``url``, ``status``, …"""
HOOK_LOG = PREFIX + "hooklog:"
"""``hooklog:{id}``: list of attempts to send a job's webhooks, JSON, oldest first."""
HOOK_SECRETS = PREFIX + "hooksecrets"
"""Hash: caller → the secret that signs its webhooks."""
FILE = PREFIX + "file:"
"""``file:{id}``: hash, an uploaded or fetched file: ``owner``, ``bytes``, ``media_type``, ``refs``, …"""
FILES = PREFIX + "files"
"""Sorted set: file id → when the file may go, ms. A file stays longer while jobs refer to it."""
BLOB = PREFIX + "blob:"
"""``blob:{file id}``: string, the content of a file that is not in the blob store."""
TRASH = PREFIX + "trash"
"""Sorted set: name in the blob store → when the blob is due for deletion, ms."""
SWEPT = PREFIX + "swept"
"""String that expires: a process looked lately for blobs that no record names."""
KEY = PREFIX + "key:"
"""``key:{id}``: hash, an API key: the hash of its secret, and what it may do."""
KEYS = PREFIX + "keys"
"""Set: ids of API keys."""
REAPER = PREFIX + "reaper"
"""Hash: ``run_id`` of the server seen last, and until when leases have grace after a restart."""
ENDED_CHANNEL = PREFIX + "ended"
"""Publish channel: ``{id} {status}`` for each terminal write; one line each, if one script made several."""
NEWS_CHANNEL = PREFIX + "news"
"""Publish channel: ``{id} {event}``, one line for each other event of a job; ``- hook``: a webhook is due."""
NODES = PREFIX + "nodes"
"""Set: names of worker nodes."""
NODE = PREFIX + "node:"
"""``node:{name}``: hash that expires unless renewed: ``parent`` and ``child``, JSON (``NodeRecord``)."""
STARTING = PREFIX + "starting:"
"""``starting:{model}``: string that expires: a caller asked to load the model, and no worker has begun
yet."""

BELL_SENT_TTL_MS = 5000
"""While ``rung:{model}`` exists no other bell is sent. If the bell was lost, the next one may follow
after this time."""
WAKE_TTL_MS = 2000
"""A wake word for a node that no longer lingers expires after this time."""
HOOK_TTL_MS = 5 * 24 * 3600 * 1000
"""The data that webhooks need, and the log of their attempts, stays for this time."""
INLINE_BYTES = 64 * 1024
"""Results up to this size live in the record and pass through Lua; larger ones have a key of their own."""

LANE_SPAN = 2**50
"""Distance between the scores of two lanes in ``ready:{model}``: more than there will ever be jobs."""

IN_BLOB, OUT_BLOB, FILE_BLOB = "in/", "out/", "file/"
"""Folders of the blob store: ``in/{job}``, ``out/{job}.{fence}``, ``file/{file}``."""

_LUA = {name.lower(): value for name, value in globals().items() if name.isupper()}


def lua_table(source: str) -> str:
    """The line of Lua that defines ``K``, with those constants of this module that ``source`` uses.

    Names are in lower case: ``K.job`` is ``JOB``. Only the used ones, because each script builds the
    table anew.

    Raises:
        KeyError: ``source`` uses a name that is not defined here.
    """
    used = sorted(set(re.findall(r"\bK\.(\w+)", source)))
    values = {name: _LUA[name] for name in used}
    # A string of Lua in single quotes is written like one of Python.
    return f"local K = {{{', '.join(f'{name}={value!r}' for name, value in values.items())}}}"


def out(job_id: str, fence: str) -> str:
    return f"{OUT}{job_id}:{fence}"
