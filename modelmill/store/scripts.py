"""The Lua scripts and their calling conventions: arguments packed and replies read, without any I/O.

Both stores, blocking and asyncio, send what is packed here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import keys
from modelmill.store.records import (
    LANE_RANK,
    Beat,
    Claimed,
    ClaimReply,
    Limits,
    Outcome,
    Progress,
    Reaped,
    Released,
    Settlement,
    Submission,
    SubmitReply,
    UnreportedEnd,
    Verdict,
)

RUNG_TTL_S = 5.0
"""How long a bell keeps others from ringing; a lost one is rung again after it."""
ORPHAN_TTL_S = 3600
"""How long a payload lives that no script has taken over."""

MEMORY_SHARE = 0.8
"""Share of the server's ``maxmemory`` up to which jobs are accepted; the rest is for their results."""

Argument = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script: sent by its SHA-1, loaded when the server does not know it."""

    name: str
    source: str
    sha: str


@cache
def script(name: str) -> Script:
    """The script of ``lua/{name}.lua``, with the table of key names and the shared functions before it."""
    folder = files("modelmill.store") / "lua"
    body = (folder / f"{name}.lua").read_text()
    shebang, rest = ("", body)
    if body.startswith("#!"):
        # Flags count only on the very first line.
        shebang, _, rest = body.partition("\n")
    source = "\n".join([shebang, keys.LUA_TABLE, (folder / "common.lua").read_text(), rest]).lstrip()
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def pack_submit(job: Submission, settings: Settings) -> list[Argument]:
    body_hash = hashlib.sha256(job.body).hexdigest() if job.idempotency_key else ""
    return [
        job.id,
        job.task,
        job.model,
        job.lane.value,
        LANE_RANK[job.lane],
        int(job.batched),
        job.items,
        len(job.body),
        job.caller,
        job.idempotency_key,
        # The address is part of what was asked: the same body for another model is another request.
        f"{job.task}/{job.model}/{int(job.batched)}/{body_hash}",
        settings.idempotency_ttl_s * 1000,
        "" if job.expires_in_s is None else _ms(job.expires_in_s),
        job.bell_every,
        settings.max_queue_depth,
        settings.max_queued_bytes,
        MEMORY_SHARE,
        *_pack_limits(job.limits),
        _json(job.files) if job.files else "",
        job.blob or "",
        *_pack_extras(job, settings),
    ]


def _pack_limits(limits: Limits) -> tuple[Argument, Argument, Argument]:
    most: Argument = "" if limits.max_jobs is None else limits.max_jobs
    if limits.jobs_per_minute is None:
        return most, "", ""
    return most, 60_000 / limits.jobs_per_minute, limits.burst


def _pack_extras(job: Submission, settings: Settings) -> list[Argument]:
    """What only some records hold, as field, value, …"""
    extras: list[Argument] = []
    if len(job.body) <= settings.keep_request_bytes:
        extras += ["keep", 1]
    if job.result_ttl_s is not None:
        extras += ["ttl_ms", _ms(job.result_ttl_s)]
    if job.metadata is not None:
        extras += ["metadata", _json(job.metadata)]
    if job.tags:
        extras += ["tags", _json(list(job.tags))]
    if job.webhook is not None:
        extras += ["hook", job.webhook, "hook_events", f",{','.join(job.webhook_events)},"]
    return extras


def read_submit(reply: Any) -> SubmitReply:
    verdict, job_id, bell, retry_ms, left = reply
    remaining = None if left < 0 else int(left)
    return SubmitReply(
        Verdict(verdict.decode()), job_id.decode(), bool(bell), int(retry_ms) / 1000, remaining
    )


def pack_claim(
    model: str,
    fence: str,
    node: str,
    count: int,
    max_bytes: int,
    linger_s: float,
    served: Iterable[str],
    settings: Settings,
) -> list[Argument]:
    return [
        model,
        fence,
        node,
        count,
        max_bytes,
        _ms(settings.lease_s),
        settings.max_deliveries,
        settings.result_ttl_s * 1000,
        _ms(linger_s),
        f",{','.join(served)}," if linger_s else "",
    ]


def read_claim(fence: str, reply: Any) -> ClaimReply:
    remaining, lingers, *rows = reply
    jobs = tuple(
        Claimed(
            id=row[0].decode(),
            fence=fence,
            task=row[1].decode(),
            batched=row[2] == b"1",
            bytes=int(row[3]),
            deliveries=int(row[4]),
            queued_s=(int(row[6]) - int(row[5])) / 1000,
            suspect=row[7] == b"1",
            files=json.loads(row[8]) if row[8] else {},
            blob=row[9].decode() or None,
        )
        for row in rows
    )
    return ClaimReply(jobs, int(remaining), bool(lingers))


def pack_beat(
    held: Sequence[tuple[str, str]], progress: Mapping[str, Progress], settings: Settings
) -> list[Argument]:
    def told(job_id: str) -> str:
        return _json(asdict(progress[job_id])) if job_id in progress else ""

    return [_ms(settings.lease_s), *(part for pair in held for part in (*pair, told(pair[0])))]


def read_beat(reply: Any) -> Beat:
    lost, cancel = ([job_id.decode() for job_id in ids] for ids in reply)
    return Beat(frozenset(lost), frozenset(cancel))


def pack_settle(
    outcomes: Sequence[Outcome | Released], settings: Settings, blobs: Collection[str] = ()
) -> list[Argument]:
    """Arguments of ``settle``. ``blobs``: names of the results that were written to the blob store."""
    arguments: list[Argument] = [settings.result_ttl_s * 1000]
    for outcome in outcomes:
        if isinstance(outcome, Released):
            arguments += [outcome.id, outcome.fence, outcome.why.value, "", outcome.item, 0]
            continue
        fields: list[Argument] = ["details", _json(outcome.details)]
        if outcome.error is not None:
            fields += ["error", _json(outcome.error)]
        where: str
        inline: bytes | str
        if outcome.result is None:
            where, inline = "", ""
        elif (name := out_blob(outcome)) in blobs:
            where, inline = "blob", name
        elif large_result(outcome):
            where, inline = "beside", ""
        else:
            where, inline = "inline", outcome.result
        arguments += [
            outcome.id,
            outcome.fence,
            outcome.status.value,
            where,
            inline,
            len(fields) // 2,
            *fields,
        ]
    return arguments


def large_result(outcome: Outcome | Released) -> bytes | None:
    """The result, if it is too large to pass through Lua and is to be written beside the record first."""
    if isinstance(outcome, Outcome) and outcome.result and len(outcome.result) > keys.INLINE_BYTES:
        return outcome.result
    return None


def out_blob(outcome: Outcome) -> str:
    """What a result is called in the blob store. Named after the fence, as beside the record."""
    return f"{keys.OUT_BLOB}{outcome.id}.{outcome.fence}"


def read_settle(reply: Any) -> list[Settlement]:
    return [Settlement(verdict.decode()) for verdict in reply]


def read_finished(rows: Any) -> list[UnreportedEnd]:
    """The ends to log, which are the second part of a reply of ``claim``, ``settle``, ``reap`` and others."""
    return [
        UnreportedEnd(job_id, task, model, Status(status), code or None, int(deliveries))
        for job_id, task, model, status, code, deliveries in (
            [value.decode() for value in row] for row in rows
        )
    ]


def pack_reap(settings: Settings) -> list[Argument]:
    return [_ms(settings.lease_s), settings.result_ttl_s * 1000, 500, _ms(RUNG_TTL_S)]


def read_reap(reply: Any) -> Reaped:
    returned, expired, bells = reply
    return Reaped(int(returned), int(expired), tuple(model.decode() for model in bells))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
