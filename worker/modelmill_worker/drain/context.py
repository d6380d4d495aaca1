"""The things that all runs of a process share."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from modelmill.settings import Settings
from modelmill.store import WorkerStore
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.leases import Leases


@dataclass(frozen=True, slots=True)
class DrainContext:
    """What a run works with. One object serves a process's whole life.

    Attributes:
        settings: The settings.
        store: The job store.
        leases: The leases that the heartbeat renews.
        recorder: Writes the child state.
        node: This node's name.
        device: The kind of this node's device.
        served: The models that this node serves.
    """

    settings: Settings
    store: WorkerStore
    leases: Leases
    recorder: Recorder
    node: str
    device: str
    served: Collection[str] = ()


class DrainThreads:
    """The threads beside the drain thread, one each. They outlive a run: to start one for each run costs
    time.

    Attributes:
        ahead: Prepares the next portion or claims ahead while the drain thread runs a portion.
        settle: Writes outcomes and parts, in order.
    """

    def __init__(self) -> None:
        self.ahead = ThreadPoolExecutor(1, "ahead")
        self.settle = ThreadPoolExecutor(1, "settle")

    def close(self) -> None:
        for pool in (self.ahead, self.settle):
            pool.shutdown(wait=False, cancel_futures=True)
