"""Compares two checkouts: CPU time per job of every process, and jobs per second, in alternating turns.

``python -m benchmarks.compare BEFORE`` measures the checkout in the folder ``BEFORE``, which has its own
``.venv``, beside this one. Both systems run at once. Each is idle while the other one has its turn, so that
a slow minute of the machine falls on both. CPU time is read from the operating system and changes less
from run to run than jobs per second do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks import ours
from benchmarks.load import Run, Target, burst, closed_loop
from benchmarks.photo import body
from benchmarks.report import Section, Table, hardware, markdown
from benchmarks.system import System, running
from benchmarks.work import NOOP

REPOSITORY = Path(__file__).parents[1]
CONNECTIONS = 32
PROCESSES = ("API", "worker", "store")
LOADS: dict[str, Callable[[Target, int], Run]] = {
    f"{CONNECTIONS} connections, polled": partial(closed_loop, connections=CONNECTIONS),
    "burst": burst,
}


@dataclass
class Side:
    """One checkout: its system, and what its turns cost."""

    system: System
    target: Target
    jobs_per_s: list[float] = field(default_factory=list)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """CPU time per job in µs, turn by turn, by the kind of process and for all of them together."""

    def turn(self, load: Callable[[Target, int], Run], jobs: int) -> None:
        before = self._cpu_s()
        run = load(self.target, jobs)
        after = self._cpu_s()
        costs = {name: (after[name] - before[name]) / jobs * 1e6 for name in PROCESSES}
        self.jobs_per_s.append(run.jobs_per_s)
        for name, cost in {**costs, "all": sum(costs.values())}.items():
            self.cpu_us.setdefault(name, []).append(cost)

    def _cpu_s(self) -> dict[str, float]:
        """CPU seconds so far of the API, of the worker with all its processes, and of the job store."""
        pids = (self.system.api_pid, self.system.supervisor_pid, self.system.store_pid)
        return {name: _family_cpu_s(pid) for name, pid in zip(PROCESSES, pids, strict=True)}


def _family_cpu_s(pid: int) -> float:
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


@contextmanager
def sides(checkouts: Sequence[Path]) -> Iterator[list[Side]]:
    """Starts the system of every checkout."""
    with ExitStack() as cleanup:
        systems = [
            cleanup.enter_context(
                running(
                    "cpu",
                    NOOP,
                    models_file=checkout / "benchmarks" / "models.toml",
                    program=[str(checkout / ".venv" / "bin" / "modelmill")],
                )
            )
            for checkout in checkouts
        ]
        yield [Side(system, ours.polled(system, NOOP, body())) for system in systems]


def compare(checkouts: Sequence[Path], rounds: int, jobs: int) -> Section:
    """Alternating turns of each checkout under each load."""
    tables = []
    for title, load in LOADS.items():
        with sides(checkouts) as both:
            for side in both:
                load(side.target, jobs)  # warms the caches of processes and models
            for number in range(rounds):
                for side in both if number % 2 else reversed(both):
                    side.turn(load, jobs)
        tables.append(_table(f"{title}, {jobs} jobs a turn", both))
    return Section("Two checkouts", tables)


def _table(title: str, both: Sequence[Side]) -> Table:
    before, after = both
    rows: list[Sequence[str | int | float]] = [
        (
            f"CPU of {name}, µs/job",
            statistics.median(before.cpu_us[name]),
            statistics.median(after.cpu_us[name]),
            _ratio(before.cpu_us[name], after.cpu_us[name]),
        )
        for name in (*PROCESSES, "all")
    ]
    rows.append(
        (
            "jobs/s",
            statistics.median(before.jobs_per_s),
            statistics.median(after.jobs_per_s),
            _ratio(before.jobs_per_s, after.jobs_per_s),
        )
    )
    return Table(title, ("", "before", "after", "after ÷ before, median of the rounds"), rows)


def _ratio(before: Sequence[float], after: Sequence[float]) -> float:
    return statistics.median(new / old for old, new in zip(before, after, strict=True))


def main(
    before: Annotated[Path, typer.Argument(help="Another checkout, with its own .venv.", exists=True)],
    rounds: Annotated[int, typer.Option(help="Turns of each checkout.")] = 5,
    jobs: Annotated[int, typer.Option(help="Jobs of one turn.")] = 4000,
) -> None:
    """Compare another checkout with this one."""
    section = compare([before.resolve(), REPOSITORY], rounds, jobs)
    print(f"{hardware()}; {rounds} rounds, alternating.\n")
    print(markdown([section]))


if __name__ == "__main__":
    typer.run(main)
