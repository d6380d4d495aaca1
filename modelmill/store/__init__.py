"""The job store: the only code that knows the keys and scripts in Redis.

Workers use ``WorkerStore``, the API uses ``ApiStore``. Both call the same Lua scripts, and only these
scripts change the state of a job. ``docs/architecture.md`` describes the way of a job through them.
"""

from modelmill.store.api_store import ApiStore, QueueState, Snapshot, Standing
from modelmill.store.news import JobNews
from modelmill.store.nodes import ModelOnNode, NodeChild, NodeParent, NodeRecord
from modelmill.store.records import (
    OPENING,
    Beat,
    Cancellation,
    Claimed,
    ClaimReply,
    ClaimRequest,
    Deletion,
    JobProgress,
    JobRecord,
    Limits,
    Outcome,
    Reaped,
    Released,
    Return,
    Settlement,
    Submission,
    SubmitReply,
    UnreportedEnd,
    Verdict,
    Wake,
)
from modelmill.store.server_checks import StoreWarning, StoreWarningCode
from modelmill.store.worker_store import WorkerStore

__all__ = [
    "OPENING",
    "ApiStore",
    "Beat",
    "Cancellation",
    "ClaimReply",
    "ClaimRequest",
    "Claimed",
    "Deletion",
    "JobNews",
    "JobProgress",
    "JobRecord",
    "Limits",
    "ModelOnNode",
    "NodeChild",
    "NodeParent",
    "NodeRecord",
    "Outcome",
    "QueueState",
    "Reaped",
    "Released",
    "Return",
    "Settlement",
    "Snapshot",
    "Standing",
    "StoreWarning",
    "StoreWarningCode",
    "Submission",
    "SubmitReply",
    "UnreportedEnd",
    "Verdict",
    "Wake",
    "WorkerStore",
]
