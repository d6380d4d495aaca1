"""How much of a GPU's own speed is left at the end of a job. ``python -m benchmarks.gpu``.

For each case: the runner's forward passes by themselves, jobs through a worker without HTTP, and jobs
through everything. Without a GPU nothing is measured; ``--tiny-cpu`` runs every step all the same, with
models of a few thousand weights, to see that the code works.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks import load
from benchmarks.engine import drain, jobs_per_s, span
from benchmarks.gpu_models import CASES, TINY_CASES, Case, Forward, forward_only, write_models_file
from benchmarks.gpu_usage import GpuUsage
from benchmarks.report import Cell, Figure, Options, Section, Table, markdown
from benchmarks.system import running
from modelmill.states import Status
from modelmill.store import JobRecord, Submission
from modelmill_backends.device import Device, available_cores, free_memory

TITLE = "On a GPU"
TARGET_SHARE = 0.85
"""The share of the best forward passes alone that a worker with enough cores must reach."""
MOST_JOBS = 20_000
"""Jobs that wait at once: with photos of 60 KB these are 1.6 GB, and a job store takes 2 GiB by default."""
NOT_YET = "Text-to-image is not measured yet; it will be one more entry in the list of cases."


@dataclass(frozen=True, slots=True)
class Plan:
    """The cases, and how long each runs."""

    device: Literal["cpu", "cuda"]
    cases: Sequence[Case]
    batches: Sequence[int]
    threads: Sequence[int]
    connections: Sequence[int]
    pass_s: float
    """How long each batch size is repeated."""
    run_s: float
    """About how long a run through the worker takes; the number of jobs follows from it."""


@dataclass(frozen=True, slots=True)
class Drained:
    """One run of jobs that had all been waiting."""

    rate: float
    """Items a second, from the first start to the last end, as the job store has them."""
    batch: float
    """Mean size of the batches."""
    busy: float | None
    """Mean share of the time that the GPU was busy; None if it cannot be measured."""


PLAN = Plan(
    "cuda",
    CASES,
    batches=(8, 16, 32, 64, 128, 256, 512),
    threads=(1, 2, 4, 8, 16),
    connections=(32, 128),
    pass_s=0.5,
    run_s=6.0,
)
TINY_PLAN = Plan(
    "cpu",
    TINY_CASES,
    batches=(2, 8),
    threads=(1, 2),
    connections=(2, 8),
    pass_s=0.05,
    run_s=0.5,
)


def measure(options: Options, plan: Plan = PLAN) -> Section:
    """The section. Without a GPU it holds one sentence."""
    import torch

    if plan.device == "cuda" and not torch.cuda.is_available():
        return Section(TITLE, notes=("PyTorch sees no GPU on this machine, so nothing was measured here.",))
    notes = [NOT_YET]
    if plan.device == "cuda":
        notes.insert(0, f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}. Random weights.")
    else:
        notes.insert(
            0, "Tiny models on the CPU: this shows that every step works, and its figures mean nothing."
        )
    device = Device(plan.device, available_cores())
    tables: list[Table] = []
    figures: list[Figure] = []
    for case in plan.cases:
        with _saved(case, plan) as folder:
            forward = forward_only(case, folder, device, plan.batches, plan.pass_s)
            # The size that an operator would write into the entry after this table.
            models = write_models_file(case, folder, forward.best_batch)
            drained = {
                threads: _through_worker(case, plan, options, models, forward, threads)
                for threads in plan.threads
                if threads <= max(available_cores(), plan.threads[0])
            }
            fastest = max(drained, key=lambda threads: drained[threads].rate)
            runs = _through_http(case, plan, options, models, fastest, drained[fastest].rate)
        tables += [
            _forward_table(case, forward),
            _worker_table(case, forward, drained),
            _http_table(case, forward, fastest, runs),
        ]
        share = drained[fastest].rate / forward.best
        figures.append(Figure(f"{case.name}: worker to forward-only", share, "times", TARGET_SHARE, True))
    return Section(TITLE, tables, figures, notes)


def _through_worker(
    case: Case, plan: Plan, options: Options, models: Path, forward: Forward, threads: int
) -> Drained:
    """The engine without HTTP, with so many threads that decode: the median of the rounds."""
    expected = min(threads / forward.preprocess_s, forward.best)
    jobs = min(MOST_JOBS, options.count(max(4 * forward.best_batch, round(expected * plan.run_s))))
    settings = {
        "MODELMILL_PREPROCESS_THREADS": str(threads),
        # The reaper would ring as soon as the first job waits; here all wait before the first starts.
        "MODELMILL_REAP_S": "3600",
    }
    with running(_devices(plan), case.model, models_file=models, settings=settings) as system:
        # The device and the libraries delay some work until their first use; do not measure it.
        asyncio.run(drain(system, _jobs(case, 2 * forward.best_batch), all_wait=True))
        runs = []
        for _ in range(options.rounds):
            with GpuUsage(plan.device) as usage:
                records = asyncio.run(drain(system, _jobs(case, jobs), all_wait=True))
            runs.append(_drained(records, usage))
    return sorted(runs, key=lambda run: run.rate)[len(runs) // 2]


def _jobs(case: Case, count: int) -> list[Submission]:
    body = json.dumps(case.inputs()).encode()
    return [Submission(str(uuid.uuid4()), case.task, case.model, body) for _ in range(count)]


def _drained(records: Sequence[JobRecord], usage: GpuUsage) -> Drained:
    started, finished = span(records)
    # A batch of n appears n times among the jobs.
    batches = sum(1 / int(record.details["batch_size"]) for record in records)
    return Drained(jobs_per_s(records), len(records) / batches, usage.busy(started, finished))


def _through_http(
    case: Case, plan: Plan, options: Options, models: Path, threads: int, expected: float
) -> dict[int, load.Run]:
    """Runs of the load client, by the number of its connections."""
    jobs_path = f"/api/tasks/{case.task}/jobs"
    settings = {"MODELMILL_PREPROCESS_THREADS": str(threads)}
    with running(_devices(plan), case.model, models_file=models, settings=settings) as system:
        target = load.Target(
            "modelmill",
            system.port,
            f"/api/tasks/{case.task}/{case.model}/jobs",
            json.dumps(case.inputs()).encode(),
            poll_path=lambda accepted: f"{jobs_path}/{accepted['id']}",
            ended=_has_ended,
        )
        load.closed_loop(target, 2 * plan.connections[-1], plan.connections[-1])
        return {
            connections: load.closed_loop(
                target, options.count(max(8 * connections, round(expected * plan.run_s))), connections
            )
            for connections in plan.connections
        }


def _has_ended(job: Mapping[str, Any]) -> bool:
    status = Status(job["status"])
    if status.is_terminal and status is not Status.COMPLETE:
        raise RuntimeError(f"a job has not completed: {job}")
    return status.is_terminal


@contextmanager
def _saved(case: Case, plan: Plan) -> Iterator[Path]:
    """The case's model in a folder that goes away again."""
    with tempfile.TemporaryDirectory(prefix="modelmill-gpu-") as name:
        case.build(Path(name) / "weights", plan.device)
        free_memory()
        yield Path(name)


def _devices(plan: Plan) -> str:
    """One worker, on the GPU that this process sees first."""
    return "0" if plan.device == "cuda" else "cpu"


def _forward_table(case: Case, forward: Forward) -> Table:
    rows = [(batch, host, device) for batch, (host, device) in forward.rates.items()]
    return Table(
        f"{case.name}: forward passes by themselves; "
        f"one of the {case.unit} takes {forward.preprocess_s * 1000:.2f} ms to prepare",
        ("batch", f"{case.unit}/s, prepared", f"{case.unit}/s, on the device already"),
        rows,
    )


def _worker_table(case: Case, forward: Forward, drained: Mapping[int, Drained]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (threads, run.rate, run.rate / forward.best, _share(run.busy), run.batch)
        for threads, run in drained.items()
    ]
    columns = ("threads", f"{case.unit}/s", "of forward-only", "GPU busy", "mean batch")
    return Table(
        f"{case.name}: in the worker, by threads that decode ({available_cores()} cores)", columns, rows
    )


def _http_table(case: Case, forward: Forward, threads: int, runs: Mapping[int, load.Run]) -> Table:
    rows = [
        (connections, run.jobs_per_s, run.jobs_per_s / forward.best, run.p50_s * 1000, run.p99_s * 1000)
        for connections, run in runs.items()
    ]
    columns = ("connections", f"{case.unit}/s", "of forward-only", "p50 ms", "p99 ms")
    return Table(f"{case.name}: through HTTP (threads that decode: {threads})", columns, rows)


def _share(share: float | None) -> Cell:
    return "–" if share is None else f"{share:.0%}"


def main(
    tiny_cpu: Annotated[bool, typer.Option(help="Every step with tiny models on the CPU.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of which the median counts.")] = 3,
    scale: Annotated[float, typer.Option(help="Counts of jobs are multiplied by this.")] = 1.0,
    only: Annotated[str, typer.Option(help="Cases whose name holds this.")] = "",
) -> None:
    """Measure how much of a GPU's own speed is left at the end of a job."""
    plan = TINY_PLAN if tiny_cpu else PLAN
    plan = replace(plan, cases=[case for case in plan.cases if only.lower() in case.name.lower()])
    print(markdown([measure(Options(rounds, scale), plan)]))


if __name__ == "__main__":
    typer.run(main)
