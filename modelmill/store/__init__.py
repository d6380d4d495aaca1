"""The job store: the only code that knows Redis keys and scripts.

``JobStore`` serves workers, ``AsyncJobStore`` the API; both speak through the same Lua scripts, which
alone change a job's state. See ``docs/architecture.md`` for a job's way through them.
"""

from modelmill.store.aio import AsyncJobStore, QueueState, Snapshot, Standing
from modelmill.store.records import (
    OPENING,
    Accepted,
    Beat,
    Claimed,
    Claims,
    Ended,
    Finished,
    JobRecord,
    Limits,
    NodeRecord,
    Progress,
    Reaped,
    Released,
    Return,
    Settlement,
    Submission,
    Verdict,
)
from modelmill.store.sync import JobStore
from modelmill.store.waiting import EndWatch

__all__ = [
    "OPENING",
    "Accepted",
    "AsyncJobStore",
    "Beat",
    "Claimed",
    "Claims",
    "EndWatch",
    "Ended",
    "Finished",
    "JobRecord",
    "JobStore",
    "Limits",
    "NodeRecord",
    "Progress",
    "QueueState",
    "Reaped",
    "Released",
    "Return",
    "Settlement",
    "Snapshot",
    "Standing",
    "Submission",
    "Verdict",
]
