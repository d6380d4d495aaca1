"""One job at a time on an idle system, against a direct call in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import httpx

from benchmarks import ours
from benchmarks.photo import body, inputs
from benchmarks.report import Figure, Options, Section, Table
from benchmarks.system import MODELS, running
from benchmarks.work import NOOP, TASK

JOBS = 100
PAUSES_S = {"at once": 0.0, "after 0.1 s": 0.1, "after 1.5 s": 1.5}
"""Between an answer and the next request. A worker lingers for a second; after that a bell is needed."""


def measure(options: Options) -> Section:
    """``Prefer: wait`` with one job at a time, for pauses of several lengths between two."""
    from modelmill.catalogue import Catalogue
    from modelmill_backends.loader import load

    direct_model = load(NOOP, Catalogue.load(MODELS))
    added: dict[str, list[float]] = {name: [] for name in PAUSES_S}
    with running("cpu", NOOP) as system, httpx.Client(base_url=system.url) as client:
        ours.ask(client, NOOP, body())
        for _ in range(options.rounds):
            for name, pause_s in PAUSES_S.items():
                jobs = options.count(JOBS) if pause_s < 1 else max(5, options.count(JOBS) // 10)
                seconds = _median(lambda: ours.ask(client, NOOP, body()), jobs, pause_s)
                direct = _median(partial(_timed, lambda: direct_model.answer(TASK, inputs())), 50)
                added[name].append((seconds - direct) * 1000)
    rows = [(name, statistics.median(values), min(values), max(values)) for name, values in added.items()]
    columns = ("the next request comes", "added ms, p50", "lowest round", "highest round")
    figure = Figure(
        "idle: time added over the direct call, p50",
        statistics.median(added["at once"]),
        "ms",
        5,
        at_least=False,
    )
    note = (
        "`noop`, one request with `Prefer: wait` for each job, compared with the same function called in "
        "this process."
    )
    return Section("Idle latency", [Table("one job at a time", columns, rows)], [figure], [note])


def _median(once: Callable[[], float], times: int, pause_s: float = 0.0) -> float:
    taken = []
    for _ in range(times):
        time.sleep(pause_s)
        taken.append(once())
    return statistics.median(taken)


def _timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
