"""The outbox: webhooks to send are taken from it, tried, and put back or settled.

The script that changes a job puts the event into the outbox in the same step, so no event is missed. A
process takes a webhook for the time of a lease. If the process dies, another one takes the webhook
after it.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from modelmill.store.arguments import pack
from modelmill.store.connection import StoreConnection

SECRET_BYTES = 32
OLD_SECRET_S = 24 * 3600
"""After a rotation, the old secret still signs for this time, together with the new one."""


class DeliveryOutcome(StrEnum):
    """How an attempt to send a webhook ended."""

    DELIVERED = "delivered"
    """The receiver answered with a 2xx status."""
    FAILED = "failed"
    """Another status, or no answer."""
    REFUSED = "refused"
    """Requests to this URL are not allowed; it is not tried again."""
    GONE = "gone"
    """Status 410: the receiver wants nothing more of this job."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, without the number and the times that the store adds."""

    id: str
    """The webhook's id, the same for each attempt."""
    event: str
    outcome: DeliveryOutcome
    status: int | None
    error: str | None
    duration_s: float


@dataclass(frozen=True, slots=True)
class LoggedAttempt(Attempt):
    """One attempt, as the log keeps it. Times are seconds since the epoch, by the clock of Redis."""

    attempt: int
    """1 is the first."""
    at: float
    next_at: float | None
    """When the next attempt is due; None if there is none."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook that this process has taken to send."""

    job_id: str
    event: str
    """``started``, ``progress`` or ``ended``."""
    lease: int
    """The end of the lease, ms. A call with it is refused once another lease has begun."""
    url: str
    caller: str
    attempts: int
    """Attempts before this one."""
    number: int
    """Number of the event in its job, from 0. Only ``progress`` has several."""
    body: str
    """The body that was sent before; empty at the first attempt."""
    status: str
    """The status of an ended job, else empty. Needed after the record has expired."""
    task: str
    model: str

    @property
    def id(self) -> str:
        number = f"_{self.number + 1}" if self.event == "progress" else ""
        return f"msg_{self.job_id}_{self.event}{number}"


class _Verdict(StrEnum):
    """The result for a webhook that was taken."""

    LATER = "later"
    """Not tried; due again after a delay."""
    AGAIN = "again"
    """Failed; due again after a delay."""
    OVER = "over"
    """Sent, or given up."""
    STOP = "stop"
    """The receiver wants no more webhooks of this job."""


class WebhookStore:
    """The outbox, the log of attempts, and the callers' secrets. If Redis fails, it raises
    ``ModelmillError``."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection

    async def take(self, count: int, lease_s: float) -> list[Delivery]:
        """Up to ``count`` webhooks that are due. No other process gets them for ``lease_s``."""
        arguments = pack("hook_claim", count=count, lease_ms=round(lease_s * 1000))
        rows = await self._connection.run_script("hook_claim", arguments)
        return [
            Delivery(
                job_id=row[0].decode(),
                event=row[1].decode(),
                lease=row[2],
                url=row[3].decode(),
                caller=row[4].decode(),
                attempts=row[5],
                number=row[6],
                body=row[7].decode(),
                status=row[8].decode(),
                task=row[9].decode(),
                model=row[10].decode(),
            )
            for row in rows
        ]

    async def keep_body(self, delivery: Delivery, body: str) -> str:
        """Keeps the body. Returns the body that was kept first; empty if the lease is over."""
        arguments = pack(
            "hook_body", id=delivery.job_id, event=delivery.event, leased_until_ms=delivery.lease, body=body
        )
        kept: bytes = await self._connection.run_script("hook_body", arguments)
        return kept.decode()

    async def put_back(self, delivery: Delivery, delay_s: float) -> None:
        """It was not tried, and is due again after ``delay_s``."""
        await self._settle(delivery, _Verdict.LATER, delay_s, None)

    async def retry(self, delivery: Delivery, attempt: Attempt, delay_s: float) -> None:
        """It failed, and is due again after ``delay_s``."""
        await self._settle(delivery, _Verdict.AGAIN, delay_s, attempt)

    async def close(self, delivery: Delivery, attempt: Attempt) -> None:
        """It was sent, or is given up. After a 410, all webhooks of its job are given up."""
        verdict = _Verdict.STOP if attempt.outcome is DeliveryOutcome.GONE else _Verdict.OVER
        await self._settle(delivery, verdict, 0.0, attempt)

    async def _settle(
        self, delivery: Delivery, verdict: _Verdict, delay_s: float, attempt: Attempt | None
    ) -> None:
        arguments = pack(
            "hook_settle",
            id=delivery.job_id,
            event=delivery.event,
            leased_until_ms=delivery.lease,
            verdict=verdict.value,
            delay_ms=round(delay_s * 1000),
            attempt="" if attempt is None else json.dumps(asdict(attempt)),
        )
        await self._connection.run_script("hook_settle", arguments)

    async def secrets(self, caller: str, *, rotate: bool = False) -> Sequence[str]:
        """The secret that signs the caller's webhooks; for a day after a rotation, also the one before."""
        fresh = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        arguments = pack(
            "hook_secret", caller=caller, fresh=fresh, rotate=int(rotate), old_ms=OLD_SECRET_S * 1000
        )
        reply = await self._connection.run_script("hook_secret", arguments)
        return [key.decode() for key in reply]

    async def log(self, job_id: str, caller: str) -> list[LoggedAttempt] | None:
        """The last 50 attempts for a job of ``caller``, oldest first; None if there is no such job.

        If one failed, they can be read for some days after the record of the job has expired.
        """
        owner, entries = await self._connection.run_script("hook_log", pack("hook_log", id=job_id))
        if owner.decode() != caller:
            return None
        return [_logged(json.loads(entry)) for entry in entries]


def _logged(entry: dict[str, object]) -> LoggedAttempt:
    at_ms, next_ms = entry.pop("at_ms"), entry.pop("next_ms", None)
    assert isinstance(at_ms, int | float)
    assert next_ms is None or isinstance(next_ms, int | float)
    return LoggedAttempt(
        **entry,  # type: ignore[arg-type]
        at=at_ms / 1000,
        next_at=None if next_ms is None else next_ms / 1000,
    )
