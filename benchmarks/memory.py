"""How much memory the processes hold, and whether it grows with the jobs that they have run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import psutil

from benchmarks import ours
from benchmarks.load import closed_loop
from benchmarks.report import Cell, Figure, Options, Section, Table, markdown
from benchmarks.system import System, running, small_body
from modelmill.catalogue import Catalogue
from modelmill.settings import MIB, Settings
from modelmill.store import WorkerStore
from modelmill_tasks.registry import find_task

JOBS, CONNECTIONS, STEPS = 100_000, 32, 10
RESULT_TTL_S = 20
LEAK_MIB = 4.0
"""How much a process may grow between 20 % and 100 % of the jobs: 52 bytes a job of 80,000."""
NOTE = (
    "RSS counts a page that several processes share in each of them; PSS divides it among them. A model "
    "is alone in a fresh child and has answered three jobs. The jobs of the second table come over HTTP "
    f"on {CONNECTIONS} connections, each with one job in flight. Results are kept for {RESULT_TTL_S} s, "
    "so the memory of Valkey has a limit."
)


def measure(options: Options) -> Section:
    """Resident memory at rest, with each model, and over many jobs."""
    leak, figures = _leak(options)
    return Section(
        "Memory",
        [_at_rest(), leak],
        figures,
        [NOTE],
    )


def _at_rest() -> Table:
    rows: list[list[Cell]] = []
    with running("cpu", "") as system:
        for name, pid in _pids(system).items():
            label = "worker child, nothing loaded" if name == "worker child" else name
            rows.append([label, *_memory_mib(pid)])
    catalogue = Catalogue.load()
    for model, entry in catalogue.items():
        if "offline" not in entry.requires:
            continue
        with running("cpu", model) as system:
            _jobs(system, model, entry.tasks[0])
            rows.append([f"worker child, {model}", *_memory_mib(_pids(system)["worker child"])])
    return Table("At rest", ("process", "RSS, MiB", "PSS, MiB"), rows)


def _jobs(system: System, model: str, task: str) -> None:
    body = json.dumps(find_task(task).example.input).encode()
    with httpx.Client(base_url=system.url, timeout=90) as client:
        for _ in range(3):
            ours.ask(client, model, body, task)


def _leak(options: Options) -> tuple[Table, list[Figure]]:
    jobs = options.count(JOBS) // STEPS
    rows: list[list[Cell]] = []
    settings = {"MODELMILL_RESULT_TTL_S": str(RESULT_TTL_S)}
    with running("cpu", "noop", settings=settings) as system:
        target = ours.polled(system, "noop", small_body())
        pids = _pids(system)
        for step in range(1, STEPS + 1):
            run = closed_loop(target, jobs, CONNECTIONS)
            rows.append([step * jobs, *(_memory_mib(pid)[0] for pid in pids.values()), run.jobs_per_s])
    growth = {
        name: float(rows[-1][column]) - float(rows[1][column]) for column, name in enumerate(pids, start=1)
    }
    table = Table(
        "Resident memory over many jobs, RSS in MiB",
        ("noop jobs", *pids, "jobs/s"),
        [*rows, ["growth from 20 % on", *growth.values(), ""]],
    )
    return table, [
        Figure(f"growth of {name}, 20 % to 100 % of {jobs * STEPS:,} jobs", mib, "MiB", LEAK_MIB, False)
        for name, mib in growth.items()
        if name != "Valkey"
    ]


def _pids(system: System) -> dict[str, int]:
    """The system's processes by what they are."""
    store = WorkerStore(Settings(redis_url=system.redis_url))
    deadline = time.monotonic() + 30
    while not (node := store.nodes()[0]).child:
        if time.monotonic() > deadline:
            raise TimeoutError("the worker's child does not say that it is there")
        time.sleep(0.1)
    store.close()
    parent, child = node.parent.pid, node.child.pid
    assert parent is not None
    assert child is not None
    # The pool's helper, which cleans up after a child that is killed.
    (tracker,) = (process.pid for process in psutil.Process(parent).children() if process.pid != child)
    return {
        "Valkey": system.store_pid,
        "API": system.api_pid,
        "worker supervisor": system.supervisor_pid,
        "worker parent": parent,
        "worker helper": tracker,
        "worker child": child,
    }


def _memory_mib(pid: int) -> tuple[float, Cell]:
    """RSS, and PSS where the kernel tells."""
    rss = psutil.Process(pid).memory_info().rss / MIB
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return rss, "not told"
    return rss, next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    print(markdown([measure(Options())]))
