"""The job store: the only code that knows Redis keys and scripts.

``WorkerStore`` serves workers, ``ApiStore`` the API; both speak through the same Lua scripts, which
alone change a job's state. See ``docs/architecture.md`` for a job's way through them.
"""

from modelmill.store.api_store import ApiStore, QueueState, Snapshot, Standing
from modelmill.store.news import JobNews
from modelmill.store.records import (
    OPENING,
    Beat,
    Claimed,
    ClaimReply,
    JobRecord,
    Limits,
    NodeRecord,
    Outcome,
    Progress,
    Reaped,
    Released,
    Return,
    Settlement,
    Submission,
    SubmitReply,
    UnreportedEnd,
    Verdict,
)
from modelmill.store.worker_store import WorkerStore

__all__ = [
    "OPENING",
    "ApiStore",
    "Beat",
    "ClaimReply",
    "Claimed",
    "JobNews",
    "JobRecord",
    "Limits",
    "NodeRecord",
    "Outcome",
    "Progress",
    "QueueState",
    "Reaped",
    "Released",
    "Return",
    "Settlement",
    "Snapshot",
    "Standing",
    "Submission",
    "SubmitReply",
    "UnreportedEnd",
    "Verdict",
    "WorkerStore",
]
