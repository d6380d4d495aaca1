"""The engine by itself, without HTTP: how long workers take for jobs that are already waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.system import System
from modelmill.broker import Bells, make_celery
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ApiStore, JobRecord, Submission

TIMEOUT_S = 600.0
AT_ONCE = 50
"""Jobs submitted or read together."""


async def drain(system: System, jobs: Sequence[Submission], *, all_wait: bool = False) -> list[JobRecord]:
    """Submits jobs of one model, rings as they are accepted, and returns them when all are complete.

    With ``all_wait``, the bell is rung once, when the last one is there.
    """
    settings = Settings(redis_url=system.redis_url)
    store, bells = ApiStore(settings), Bells(make_celery(settings), lambda _: None)
    parts = [jobs[start : start + AT_ONCE] for start in range(0, len(jobs), AT_ONCE)]
    try:
        for part in parts:
            for accepted in await asyncio.gather(*map(store.submit, part)):
                assert accepted.verdict == "accepted", accepted
                if accepted.bell and not all_wait:
                    bells.ring(jobs[0].model)
        if all_wait:
            bells.ring(jobs[0].model)
        async with asyncio.timeout(TIMEOUT_S):
            while await store.unfinished():
                await asyncio.sleep(0.05)
        found = [
            record for part in parts for record in await asyncio.gather(*(store.get(job.id) for job in part))
        ]
    finally:
        await store.close()
        bells.close()
    records = [record for record in found if record is not None]
    failed = [record for record in records if record.status is not Status.COMPLETE]
    assert not failed, f"{len(failed)} of {len(jobs)} jobs failed, such as {failed[0]}"
    return records


def span(records: Sequence[JobRecord]) -> tuple[float, float]:
    """The first start and the last end, by the job store's clock, so that measuring costs nothing."""
    started = min(record.started_at or 0.0 for record in records)
    return started, max(record.finished_at or 0.0 for record in records)


def jobs_per_s(records: Sequence[JobRecord]) -> float:
    started, finished = span(records)
    return len(records) / (finished - started)
