"""Webhooks that are to be sent: taken from the outbox, tried, and put back or settled.

The scripts which change a job put its events into the outbox in the same step, so none is missed. Whoever
takes one holds it for a lease; a process that dies leaves it to the next.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from modelmill.store.api_store import ApiStore

SECRET_BYTES = 32
OLD_SECRET_S = 24 * 3600
"""How long a rotated secret still signs beside the new one."""


class DeliveryOutcome(StrEnum):
    """How an attempt to send a webhook ended."""

    DELIVERED = "delivered"
    """The receiver answered with a 2xx status."""
    FAILED = "failed"
    """Another status, or no answer."""
    REFUSED = "refused"
    """The URL may not be asked; it is not tried again."""
    GONE = "gone"
    """Status 410: the receiver wants nothing more of this job."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, without what the store adds: number and times."""

    id: str
    """The webhook's id, the same for each attempt."""
    event: str
    outcome: DeliveryOutcome
    status: int | None
    error: str | None
    duration_s: float


@dataclass(frozen=True, slots=True)
class LoggedAttempt(Attempt):
    """One attempt as the log keeps it. Times are seconds since the epoch, by the clock of Redis."""

    attempt: int
    """1 is the first."""
    at: float
    next_at: float | None
    """When the next is due; None where there is none."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook that this process has taken to send."""

    job_id: str
    event: str
    """``started``, ``progress`` or ``ended``."""
    lease: int
    """Until when it is ours, in ms; what shows that it still is."""
    url: str
    caller: str
    attempts: int
    """Made before this one."""
    number: int
    """Of the event in its job, from 0; there are several of progress only."""
    body: str
    """As it was sent before; empty at the first attempt."""
    status: str
    """How the job ended, as far as it has; for when its record is forgotten."""
    task: str
    model: str

    @property
    def id(self) -> str:
        number = f"_{self.number + 1}" if self.event == "progress" else ""
        return f"msg_{self.job_id}_{self.event}{number}"


class HookStore:
    """The outbox, what was sent, and the callers' secrets. Raises what ``ApiStore`` raises."""

    def __init__(self, store: ApiStore) -> None:
        self._store = store

    async def take(self, count: int, lease_s: float) -> list[Delivery]:
        """Up to ``count`` webhooks that are due; nobody else gets them for ``lease_s``."""
        rows = await self._store.run("hook_claim", [count, round(lease_s * 1000)])
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
        """Keeps what is sent; gives what was kept first, or nothing when the delivery is no more ours."""
        arguments: list[str | int] = [delivery.job_id, delivery.event, delivery.lease, body]
        kept: bytes = await self._store.run("hook_body", arguments)
        return kept.decode()

    async def put_back(self, delivery: Delivery, delay_s: float) -> None:
        """It was not tried, and is due again after ``delay_s``."""
        await self._settle(delivery, "later", delay_s, None)

    async def retry(self, delivery: Delivery, attempt: Attempt, delay_s: float) -> None:
        """It failed, and is due again after ``delay_s``."""
        await self._settle(delivery, "again", delay_s, attempt)

    async def close(self, delivery: Delivery, attempt: Attempt) -> None:
        """It was sent, or is given up; after a 410 all of its job are."""
        await self._settle(
            delivery, "stop" if attempt.outcome is DeliveryOutcome.GONE else "over", 0.0, attempt
        )

    async def _settle(
        self, delivery: Delivery, verdict: str, delay_s: float, attempt: Attempt | None
    ) -> None:
        entry = "" if attempt is None else json.dumps(asdict(attempt))
        await self._store.run(
            "hook_settle",
            [delivery.job_id, delivery.event, delivery.lease, verdict, round(delay_s * 1000), entry],
        )

    async def secrets(self, caller: str, *, rotate: bool = False) -> Sequence[str]:
        """What the caller's webhooks are signed with; after a rotation also the one before, for a day."""
        fresh = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        reply = await self._store.run("hook_secret", [caller, fresh, int(rotate), OLD_SECRET_S * 1000])
        return [key.decode() for key in reply]

    async def log(self, job_id: str, caller: str) -> list[LoggedAttempt] | None:
        """Attempts for a job of ``caller``, oldest first, the last 50; None when there is no such job.

        Where one failed they can be read for some days after the job itself is forgotten.
        """
        owner, entries = await self._store.run("hook_log", [job_id])
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
