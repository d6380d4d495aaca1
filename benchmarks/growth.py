"""How the costs change as the system grows: longer queues, more workers, more models."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import httpx

from benchmarks import ours
from benchmarks.engine import drain, jobs_per_s
from benchmarks.report import Cell, Figure, Options, Section, Table, markdown
from benchmarks.system import TASK, Backlog, System, backlog, running, small_body
from modelmill.broker import Bells, make_celery
from modelmill.settings import Settings
from modelmill.store import JobRecord, Submission, keys

MODEL = "noop"
MODEL_CAP = 64
"""Its largest batch, in ``models.toml``."""
DEPTHS = (1_000, 10_000, 100_000, 1_000_000)
CLAIM = 16
"""Jobs of one claim: the default batch size."""
BLOCKS = 40
"""Blocks at one depth in one round; each has ``CLAIM`` submits and one claim."""
COSTS = ("submit", "submit.lua", "claim", "claim.lua")
NOTE = (
    "Each depth has its own server, and the rounds take the depths in turn. As many jobs are claimed, "
    f"{CLAIM} at a time, as were submitted. The time of the scripts is the server's own figure (`INFO "
    "commandstats`); the rest of a submit or a claim is the round trip. Bytes a job are the growth of "
    "`used_memory`, less the bytes that were sent; a finished job keeps its request for a rerun. In the "
    "last two tables, the systems that are not being measured are idle."
)


def measure(options: Options) -> Section:
    """Cost against depth, bytes a job, batches of a burst, throughput against workers and models."""
    depth, depth_figures = _depth(options)
    memory, memory_figures = _bytes(options)
    batches, batch_figure = _batches(options)
    workers, worker_figures = _workers(options)
    return Section(
        "Growth",
        [depth, memory, batches, workers, _models(options)],
        [*depth_figures, *memory_figures, batch_figure, *worker_figures],
        [NOTE],
    )


def _depth(options: Options) -> tuple[Table, list[Figure]]:
    depths = [options.count(depth) for depth in DEPTHS]
    # By depth, round by round: one figure of each of ``COSTS``.
    found: list[list[list[float]]] = [[] for _ in depths]

    async def rounds(backlogs: Sequence[Backlog]) -> None:
        for _ in range(options.rounds):
            for place, jobs in enumerate(backlogs):
                blocks = [await _block(jobs) for _ in range(BLOCKS)]
                found[place].append([statistics.median(us) for us in zip(*blocks, strict=True)])
        for jobs in backlogs:
            await jobs.api.close()

    with ExitStack() as cleanup:
        backlogs = [cleanup.enter_context(backlog()) for _ in depths]
        for jobs, depth in zip(backlogs, depths, strict=True):
            jobs.fill(depth, b"x" * 100, [MODEL])
            jobs.used_bytes()  # waits until the server is done with it
        asyncio.run(rounds(backlogs))
    rows: list[list[Cell]] = [
        [depth, *map(statistics.median, zip(*figures, strict=True))]
        for depth, figures in zip(depths, found, strict=True)
    ]
    ratios = [
        statistics.median(deep[i] / shallow[i] for shallow, deep in zip(found[0], found[-1], strict=True))
        for i in range(len(COSTS))
    ]
    title = "Cost against depth, p50 in µs a job of 100 bytes"
    return Table(title, ("queued jobs", *COSTS), [*rows, ["ratio", *ratios]]), [
        Figure(f"{name}, {depths[-1]:,} queued against {depths[0]:,}", ratio, "times", 1.2, at_least=False)
        for name, ratio in zip(COSTS, ratios, strict=True)
    ]


async def _block(jobs: Backlog) -> tuple[float, float, float, float]:
    """µs a job, as in ``COSTS``."""
    seen, before = [], _scripts_us(jobs)
    for _ in range(CLAIM):
        job = Submission(str(uuid.uuid4()), TASK, MODEL, b"x" * 100)
        started = time.perf_counter()
        await jobs.api.submit(job)
        seen.append((time.perf_counter() - started) * 1e6)
    between = _scripts_us(jobs)
    started = time.perf_counter()
    ended = jobs.claim(MODEL, CLAIM)
    claim_us = (time.perf_counter() - started) * 1e6
    claim_script_us = _scripts_us(jobs) - between
    jobs.worker.settle(ended)
    return statistics.median(seen), (between - before) / CLAIM, claim_us / CLAIM, claim_script_us / CLAIM


def _scripts_us(jobs: Backlog) -> float:
    """The time that scripts took since the start of the server, by its own clock."""
    return float(jobs.redis.info("commandstats").get("cmdstat_evalsha", {}).get("usec", 0))


def _bytes(options: Options) -> tuple[Table, list[Figure]]:
    rows, figures = [], []
    for size, wanted in ((100, options.count(100_000)), (60_000, options.count(2_000))):
        claims = max(1, wanted // CLAIM)
        count = claims * CLAIM
        with backlog() as jobs:

            def end(claims: int, jobs: Backlog = jobs) -> None:
                for _ in range(claims):
                    jobs.worker.settle(jobs.claim(MODEL, CLAIM))

            # Memory that is taken once, such as for the scripts, is there before the first measurement.
            jobs.fill(CLAIM, b"x" * size, [MODEL])
            end(1)
            empty = jobs.used_bytes()
            jobs.fill(count, b"x" * size, [MODEL])
            queued = (jobs.used_bytes() - empty) / count - size
            end(claims)
            # The request is kept with it, up to a size, to be run again.
            finished = (jobs.used_bytes() - empty) / count - len(jobs.result)
        rows.append([size, count, queued, finished])
        name = f"bytes of a queued job of {size:,} beyond its body"
        figures.append(Figure(name, queued, "bytes", 1024, at_least=False))
    columns = ("body, bytes", "jobs", "a queued job", "a finished job")
    return Table(
        "Redis bytes a job, queued beyond its body, finished beyond its result", columns, rows
    ), figures


def _batches(options: Options) -> tuple[Table, Figure]:
    count = options.count(1000)
    rows: list[tuple[int, float]] = []
    with running("cpu", MODEL) as system:
        for _ in range(options.rounds):
            jobs = [
                Submission(str(uuid.uuid4()), TASK, MODEL, small_body(), bell_every=MODEL_CAP)
                for _ in range(count)
            ]
            sizes = [record.details["batch_size"] for record in asyncio.run(drain(system, jobs))]
            # Each job says how many ran with it.
            batches = sum(1 / size for size in sizes)
            rows.append((round(batches), count / batches))
    title = f"{count:,} jobs at once, for a worker that takes up to {MODEL_CAP} to a batch"
    mean = statistics.median(mean for _, mean in rows)
    figure = Figure("mean batch of a burst, of the largest", mean / MODEL_CAP, "times", 0.9, at_least=True)
    return Table(title, ("batches", "jobs a batch"), rows), figure


def _workers(options: Options) -> tuple[Table, list[Figure]]:
    count, numbers = options.count(2000), (1, 2, 4)

    def rate(system: System) -> float:
        jobs = [
            Submission(str(uuid.uuid4()), TASK, "sleep", small_body(), bell_every=CLAIM) for _ in range(count)
        ]
        return jobs_per_s(asyncio.run(drain(system, jobs)))

    with ExitStack() as cleanup:
        systems = [cleanup.enter_context(running(f"cpu:{number}", "sleep")) for number in numbers]
        rates = _in_turn(options.rounds, systems, rate)
    ratios = [
        statistics.median(rate / one for rate, one in zip(each, rates[0], strict=True)) for each in rates
    ]
    rows = list(zip(numbers, map(statistics.median, rates), ratios, strict=True))
    title = f"{count:,} jobs on a model that sleeps 50 ms a batch of {CLAIM}"
    return Table(title, ("workers", "jobs/s", "times one"), rows), [
        Figure(f"{number} workers against one", ratio, "times", 0.95 * number, at_least=True)
        for number, _, ratio in rows[1:]
    ]


def _models(options: Options) -> Table:
    numbers, count = (1, 10, 100), options.count(5000)
    names = [f"noop-{index:03}" for index in range(numbers[-1])]
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="modelmill-bench-")))
        file = folder / "models.toml"
        entry = f'backend = "noop"\ntasks = ["{TASK}"]\nmax_batch = 64\nmemory_mib = 1\n'
        file.write_text("".join(f"[models.{name}]\n{entry}" for name in names), encoding="utf-8")
        served = {
            cleanup.enter_context(
                running("cpu", names[0], models_file=file, served=",".join(names[:number]))
            ): names[:number]
            for number in numbers
        }
        for system, models in served.items():
            _one_by_one(system, models)  # loads them
        rates = _in_turn(options.rounds, [*served], lambda system: _drain_rate(system, served[system], count))
        idle = _in_turn(
            options.rounds, [*served], lambda system: _one_by_one(system, (served[system] * 100)[:100])
        )
    rows = list(zip(numbers, map(statistics.median, rates), map(statistics.median, idle), strict=True))
    columns = ("models", "jobs/s", "one job on an idle system, p50 ms")
    return Table(f"{count:,} noop jobs, spread over the models of one worker", columns, rows)


def _in_turn(
    rounds: int, systems: Sequence[System], once: Callable[[System], float]
) -> Sequence[Sequence[float]]:
    """By system, the results of ``once`` in each round."""
    return list(zip(*([once(system) for system in systems] for _ in range(rounds)), strict=True))


def _one_by_one(system: System, models: Sequence[str]) -> float:
    """p50 in ms of one job after the other."""
    with httpx.Client(base_url=system.url, timeout=60) as client:
        return statistics.median(ours.ask(client, model, small_body()) for model in models) * 1000


def _drain_rate(system: System, models: Sequence[str], count: int) -> float:
    """Jobs a second, from the first start to the last end of jobs that were all there before it."""
    jobs = Backlog(system.redis_url)
    bells = Bells(make_celery(Settings(redis_url=system.redis_url)), jobs.worker.release_bell)
    # No other process rings while the queues fill: for some seconds this one holds the right to ring.
    for model in models:
        jobs.redis.set(keys.BELL_SENT + model, "1", px=keys.BELL_SENT_TTL_MS)
    ids = jobs.fill(count, small_body(), models)
    for model in models:
        bells.ring(model)
    while int(cast("bytes", jobs.redis.hget(keys.TOTALS, "jobs"))):
        time.sleep(0.05)
    bells.close()
    hashes = [cast("dict[bytes, bytes]", jobs.redis.hgetall(keys.JOB + job_id)) for job_id in ids]
    return jobs_per_s(
        [JobRecord.from_hash(job_id, fields, None) for job_id, fields in zip(ids, hashes, strict=True)]
    )


if __name__ == "__main__":
    print(markdown([measure(Options())]))
