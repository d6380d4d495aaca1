"""The Lua scripts: their sources, their arguments packed, and their replies read. Without any I/O.

``WorkerStore`` and ``ApiStore`` both use it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from modelmill.errors import ERRORS
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import keys
from modelmill.store.arguments import SIGNATURES, Argument, pack, pack_group
from modelmill.store.records import (
    LANE_RANK,
    Beat,
    Claimed,
    ClaimReply,
    ClaimRequest,
    JobProgress,
    Limits,
    Outcome,
    Reaped,
    Released,
    Settlement,
    Submission,
    SubmitReply,
    UnreportedEnd,
    Verdict,
)

ORPHAN_TTL_S = 3600
"""A payload or result that no script has taken over expires after this time."""
REAPED_AT_ONCE = 500

MEMORY_SHARE = 0.8
"""Share of the server's ``maxmemory`` up to which jobs are accepted; the rest is for their results."""


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script. It is sent by its SHA-1; if the server does not know it, by its source."""

    name: str
    source: str
    sha: str


@cache
def script(name: str) -> Script:
    """The script of ``lua/{name}.lua``. Before it stand what ``common.lua`` describes and its arguments."""
    folder = files("modelmill.store") / "lua"
    body = (folder / f"{name}.lua").read_text()
    shebang, rest = ("", body)
    if body.startswith("#!"):
        # Redis reads flags on the first line only.
        shebang, _, rest = body.partition("\n")
    common = (folder / "common.lua").read_text()
    parts = [
        shebang,
        keys.lua_table(common + rest),
        _lua_retryable(),
        common,
        SIGNATURES[name].as_lua(),
        rest,
    ]
    source = "\n".join(parts).lstrip()
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _lua_retryable() -> str:
    codes = ", ".join(f"{code.value} = true" for code, spec in ERRORS.items() if spec.retryable)
    return f"local function retryable(code) return ({{{codes}}})[code] == true end"


def pack_submit(job: Submission, settings: Settings) -> list[Argument]:
    body_hash = hashlib.sha256(job.body).hexdigest() if job.idempotency_key else ""
    has_rate = job.limits.jobs_per_minute is not None
    return pack(
        "submit",
        _optional_fields(job, settings),
        id=job.id,
        task=job.task,
        model=job.model,
        lane=job.lane.value,
        rank=LANE_RANK[job.lane],
        batched=int(job.batched),
        items=job.items,
        bytes=len(job.body),
        caller=job.caller,
        idempotency_key=job.idempotency_key,
        # The address is part of the request: the same body for another model is another request.
        body_hash=f"{job.task}/{job.model}/{int(job.batched)}/{body_hash}",
        idempotency_ttl_ms=settings.idempotency_ttl_s * 1000,
        expires_in_ms="" if job.expires_in_s is None else _ms(job.expires_in_s),
        bell_every=job.bell_every,
        max_depth=settings.max_queue_depth,
        max_bytes=settings.max_queued_bytes,
        max_share=MEMORY_SHARE,
        max_open="" if job.limits.max_jobs is None else job.limits.max_jobs,
        interval_ms=_interval_ms(job.limits),
        burst=job.limits.burst if has_rate else "",
        files=_json(job.files) if job.files else "",
        blob=job.blob or "",
    )


def _interval_ms(limits: Limits) -> Argument:
    return "" if limits.jobs_per_minute is None else 60_000 / limits.jobs_per_minute


def _optional_fields(job: Submission, settings: Settings) -> list[Argument]:
    """Fields that only some records have, as field, value, …"""
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


def pack_claim(request: ClaimRequest, settings: Settings) -> list[Argument]:
    return pack(
        "claim",
        model=request.model,
        fence=request.fence,
        node=request.node,
        max_count=request.count,
        max_bytes=request.max_bytes,
        lease_ms=_ms(settings.lease_s),
        max_deliveries=settings.max_deliveries,
        result_ttl_ms=settings.result_ttl_s * 1000,
        linger_ms=_ms(request.linger_s),
        served=f",{','.join(request.served)}," if request.linger_s else "",
    )


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
    claimed: Sequence[tuple[str, str]], progress: Mapping[str, JobProgress], settings: Settings
) -> list[Argument]:
    groups: list[Argument] = []
    for job_id, fence in claimed:
        done = _json(asdict(progress[job_id])) if job_id in progress else ""
        groups += pack_group("beat", id=job_id, fence=fence, progress=done)
    return pack("beat", groups, lease_ms=_ms(settings.lease_s))


def read_beat(reply: Any) -> Beat:
    lost, cancel = ([job_id.decode() for job_id in ids] for ids in reply)
    return Beat(frozenset(lost), frozenset(cancel))


def pack_settle(
    outcomes: Sequence[Outcome | Released], settings: Settings, blobs: Collection[str] = ()
) -> list[Argument]:
    """Arguments of ``settle``. ``blobs``: names of the results that were written to the blob store."""
    groups: list[Argument] = []
    for outcome in outcomes:
        if isinstance(outcome, Released):
            groups += _pack_released(outcome)
        else:
            groups += _pack_outcome(outcome, blobs)
    return pack("settle", groups, result_ttl_ms=settings.result_ttl_s * 1000)


def _pack_released(released: Released) -> list[Argument]:
    return pack_group(
        "settle",
        id=released.id,
        fence=released.fence,
        outcome=released.why.value,
        where="",
        result=released.item,
        field_count=0,
    )


def _pack_outcome(outcome: Outcome, blobs: Collection[str]) -> list[Argument]:
    fields: list[Argument] = ["details", _json(outcome.details)]
    if outcome.error is not None:
        fields += ["error", _json(outcome.error)]
    where: str
    result: bytes | str
    if outcome.result is None:
        where, result = "", ""
    elif (name := out_blob(outcome)) in blobs:
        where, result = "blob", name
    elif large_result(outcome):
        where, result = "beside", ""
    else:
        where, result = "inline", outcome.result
    group = pack_group(
        "settle",
        id=outcome.id,
        fence=outcome.fence,
        outcome=outcome.status.value,
        where=where,
        result=result,
        field_count=len(fields) // 2,
    )
    return [*group, *fields]


def large_result(outcome: Outcome | Released) -> bytes | None:
    """The result, if it is too large to pass through Lua and must be written into a key of its own first."""
    if isinstance(outcome, Outcome) and outcome.result and len(outcome.result) > keys.INLINE_BYTES:
        return outcome.result
    return None


def out_blob(outcome: Outcome) -> str:
    """The name of a result in the blob store. The fence is part of it, as in ``keys.OUT``."""
    return f"{keys.OUT_BLOB}{outcome.id}.{outcome.fence}"


def read_settle(reply: Any) -> list[Settlement]:
    return [Settlement(verdict.decode()) for verdict in reply]


def read_unreported_ends(rows: Any) -> list[UnreportedEnd]:
    """The ends to log: the second part of a reply of ``claim``, ``settle``, ``reap``, ``cancel`` and
    ``delete``."""
    return [
        UnreportedEnd(job_id, task, model, Status(status), code or None, int(deliveries))
        for job_id, task, model, status, code, deliveries in (
            [value.decode() for value in row] for row in rows
        )
    ]


def pack_reap(settings: Settings) -> list[Argument]:
    return pack(
        "reap",
        lease_ms=_ms(settings.lease_s),
        result_ttl_ms=settings.result_ttl_s * 1000,
        at_most=REAPED_AT_ONCE,
    )


def read_reap(reply: Any) -> Reaped:
    returned, expired, bells = reply
    return Reaped(int(returned), int(expired), tuple(model.decode() for model in bells))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
