"""A real model end to end, against a plain loop over the same file, and behind the peers."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.load import closed_loop
from benchmarks.overhead import CELERY, LITSERVE, OURS, WAITED, Seen, systems
from benchmarks.report import Figure, Options, Section, Table
from modelmill import processes

MODEL = "conse-lite0"
CONNECTIONS = 32
IMAGES = 400
PAUSE_S = 0.05
BATCHES = (1, 2, 4, 8, 16)
LOOP = "offline loop"

Loop = subprocess.Popen[str]


def measure(options: Options) -> Section:
    """Images a second, in turns: the loop, Modelmill polled and waited for, LitServe, plain Celery."""
    images = options.count(IMAGES)
    with systems(MODEL, (CELERY, LITSERVE)) as (found, absent), offline() as loop:
        # A job takes some hundred milliseconds here: at the usual pause most of them would be spent on polls.
        targets = [replace(target, pause_s=PAUSE_S) for target in found]
        batch = min(BATCHES, key=lambda size: _seconds(loop, size, images))
        seen = {target.name: Seen() for target in targets}
        for target in targets:
            # Long enough for a batch size to be found.
            closed_loop(target, images, CONNECTIONS)
        rates = []
        for _ in range(options.rounds):
            rates.append(images / _seconds(loop, batch, images))
            for target in targets:
                seen[target.name].runs.append(closed_loop(target, images, CONNECTIONS))
    ideal = statistics.median(rates)
    rows: list[tuple[str | float, ...]] = [(LOOP, ideal, "-", "-", 1.0)]
    rows += [
        (name, one.jobs_per_s, one.p50_ms, one.p99_ms, one.jobs_per_s / ideal) for name, one in seen.items()
    ]
    columns = ("system", "images/s", "p50 ms", "p99 ms", "of the loop")
    best = max(seen[name].jobs_per_s for name in (OURS, WAITED))
    figure = Figure("real model, end to end against the offline loop", best / ideal, "times", 0.9, True)
    note = (
        f"`{MODEL}`, photos of 58 KB, {CONNECTIONS} connections. The loop decodes, preprocesses and runs the "
        f"same ONNX file in one process with the same threads, {batch} images a batch, which is its "
        "best size. The loop has the machine to itself; the others share it with the load client. Polls are "
        "50 ms apart."
    )
    return Section("Real model", [Table("end to end", columns, rows)], [figure], [note, *absent])


@contextmanager
def offline() -> Iterator[Loop]:
    """The loop's process, loaded and waiting."""
    command = processes.python("-m", "benchmarks.offline", MODEL)
    loop = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        _seconds(loop, 1, 4)
        yield loop
    finally:
        loop.terminate()
        loop.wait()


def _seconds(loop: Loop, batch: int, images: int) -> float:
    assert loop.stdin is not None
    assert loop.stdout is not None
    loop.stdin.write(f"{batch} {images}\n")
    loop.stdin.flush()
    return float(loop.stdout.readline())
