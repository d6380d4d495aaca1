"""The cost of a job without its work: a model that does nothing, behind Modelmill and behind its peers.

All systems run at once on this machine, each idle while another is asked. In every round each of them takes
its turn, so that a slow minute of the machine falls on all.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import ours
from benchmarks.load import Run, Target, burst, closed_loop
from benchmarks.peers import PEERS
from benchmarks.photo import body
from benchmarks.report import Figure, Options, Section, Table
from benchmarks.system import running
from benchmarks.work import NOOP
from modelmill.embedded import EmbeddedServer

CONNECTIONS = (1, 8, 32)
BURST = 2000
SMALLER_BURST = {"bentoml": 200}
"""For a system that would take minutes for ``BURST`` jobs."""
TURN_S = 2.5
"""About how long one system is measured before the next has its turn."""
OURS, WAITED = "modelmill", "modelmill, Prefer: wait"
CELERY, BENTOML, LITSERVE = "celery", "bentoml", "litserve"


@dataclass
class Seen:
    """All turns of one system under one load."""

    runs: list[Run] = field(default_factory=list)

    @property
    def jobs_per_s(self) -> float:
        return statistics.median(run.jobs_per_s for run in self.runs)

    @property
    def p50_ms(self) -> float:
        return statistics.median(run.p50_s for run in self.runs) * 1000

    @property
    def p99_ms(self) -> float:
        """Over the jobs of all turns: one turn of a slow system has too few."""
        latencies = [latency for run in self.runs for latency in run.latencies_s]
        return statistics.quantiles(latencies, n=100)[98] * 1000

    @property
    def requests_per_job(self) -> float:
        return sum(run.requests for run in self.runs) / sum(len(run.latencies_s) for run in self.runs)


def measure(options: Options) -> Section:
    """Closed loops over 1, 8 and 32 connections, and a burst."""
    tables, figures = [], []
    with systems(NOOP) as (targets, absent):
        for connections in CONNECTIONS:
            seen = in_turns(targets, options, partial(closed_loop, connections=connections))
            tables.append(_table(f"{connections} connections, one job in flight each", seen))
            if connections == CONNECTIONS[-1]:
                figures += _figures(seen)
        jobs = options.count(BURST)
        # A synchronous server has no queue that a burst could go into.
        queued = [target for target in targets if target.poll_path is not None]
        bursts = {target.name: Seen() for target in queued}
        for _ in range(options.rounds):
            for target in queued:
                bursts[target.name].runs.append(
                    burst(target, min(jobs, SMALLER_BURST.get(target.name, jobs)))
                )
        tables.append(_burst_table(f"a burst of {jobs}", bursts))
        figures += _ratio("burst, against plain FastAPI + Celery", bursts, OURS, CELERY, 10)
    note = (
        f"`noop` with a photo of 58 KB as base64 in JSON ({len(body()):,} bytes a request), one load client "
        "for all. Polls are 5 ms apart. Celery, Taskiq and Modelmill use servers of the same kind with the "
        "same persistence (AOF, synced every second). LitServe is synchronous and keeps nothing; BentoML "
        "keeps its tasks in SQLite, and its burst is of 200."
    )
    return Section("Overhead", tables, figures, [note, *absent])


@contextmanager
def systems(work: str, peers: Sequence[str] = tuple(PEERS)) -> Iterator[tuple[list[Target], list[str]]]:
    """Modelmill, both ways, and the peers that are installed; and a sentence about each that is not."""
    with ExitStack() as cleanup:
        system = cleanup.enter_context(running("cpu", work))
        targets = [ours.polled(system, work, body()), ours.waited(system, work, body())]
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="bench-redis-")))
        server = cleanup.enter_context(EmbeddedServer(folder))
        absent = []
        for name in peers:
            if PEERS[name].available():
                targets.append(cleanup.enter_context(PEERS[name].running(work, server.url, body())))
            else:
                absent.append(f"{name} is not installed here, and left out.")
        yield targets, absent


def in_turns(
    targets: Sequence[Target], options: Options, ask: Callable[[Target, int], Run]
) -> dict[str, Seen]:
    """Asks each target for some seconds, in each round. A first turn finds out how many jobs that is."""
    counts = {}
    for target in targets:
        first = ask(target, 40)
        counts[target.name] = max(40, round(first.jobs_per_s * TURN_S * options.scale))
    seen = {target.name: Seen() for target in targets}
    for _ in range(options.rounds):
        for target in targets:
            seen[target.name].runs.append(ask(target, counts[target.name]))
    return seen


def _table(title: str, seen: dict[str, Seen]) -> Table:
    base = seen.get(CELERY)
    rows = [
        (
            name,
            one.jobs_per_s,
            one.p50_ms,
            one.p99_ms,
            one.requests_per_job,
            one.jobs_per_s / base.jobs_per_s if base else "-",
        )
        for name, one in seen.items()
    ]
    return Table(title, ("system", "jobs/s", "p50 ms", "p99 ms", "requests a job", "times celery"), rows)


def _burst_table(title: str, seen: dict[str, Seen]) -> Table:
    base = seen.get(CELERY)
    rows = [
        (name, one.jobs_per_s, one.jobs_per_s / base.jobs_per_s if base else "-")
        for name, one in seen.items()
    ]
    return Table(title, ("system", "jobs/s, first submit to last end", "times celery"), rows)


def _figures(seen: dict[str, Seen]) -> list[Figure]:
    found = _ratio("32 connections, against plain FastAPI + Celery", seen, OURS, CELERY, 8)
    if CELERY in seen:
        found.append(
            Figure(
                "p99 of plain FastAPI + Celery to ours",
                seen[CELERY].p99_ms / seen[OURS].p99_ms,
                "times",
                8,
                True,
            )
        )
    found += _ratio("32 connections, against BentoML tasks", seen, OURS, BENTOML, 10)
    found += _ratio("32 connections, one request a job, against LitServe", seen, WAITED, LITSERVE, 1)
    return found


def _ratio(name: str, seen: dict[str, Seen], own: str, peer: str, target: float) -> list[Figure]:
    if peer not in seen:
        return []
    return [Figure(name, seen[own].jobs_per_s / seen[peer].jobs_per_s, "times", target, True)]
