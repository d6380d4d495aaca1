"""The job store: the only code that knows Redis keys and scripts.

``JobStore`` serves workers, ``AsyncJobStore`` the API; both speak through the same Lua scripts, which
alone change a job's state. See ``docs/architecture.md`` for a job's way through them.
"""

from modelmill.store.api_store import AsyncJobStore, QueueState, Snapshot, Standing
from modelmill.store.news import EndWatch
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
from modelmill.store.worker_store import JobStore

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
