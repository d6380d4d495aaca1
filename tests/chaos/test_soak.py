"""Jobs are submitted without pause while workers, APIs and Redis are killed: none is lost, each ends once."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.chaos.harness import System
from tests.chaos.soak import DRAIN_WITHIN_S, LIMITS, Pace, Report, Soak

SECONDS = float(os.environ.get("CHAOS_SECONDS", "300"))
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))

SHORT = Pace(
    worker_kill_s=2.5,
    api_kill_s=3.5,
    redis_kill_s=3.5,
    broker_flush_s=2.5,
    full_redis_s=4.0,
    full_blobs_s=4.0,
)


def soak(folder: Path, seconds: float, pace: Pace) -> Report:
    print(f"\nCHAOS_SEED={SEED}, {seconds:.0f} s, {os.cpu_count()} cores")
    blobs = folder / "blobs"
    settings = {"lease_s": 3.0, "beat_s": 0.6, "reap_s": 0.3, "blob_url": str(blobs), **LIMITS}
    with System(folder, settings, apis=2, workers=("cpu", "cpu")) as system:

        async def attack() -> Report:
            return await Soak(system, SEED, seconds, pace).run()

        report = asyncio.run(attack())
    print(report.table())
    return report


def check(report: Report) -> None:
    assert report.lost == []
    assert report.misplaced == []
    assert report.ended_twice == []
    assert report.accepted_twice == 0
    assert report.wrongly_failed == []
    assert report.wrong_results == []
    assert report.drain_s <= DRAIN_WITHIN_S


@pytest.mark.timeout(120)
def test_a_short_soak(tmp_path: Path) -> None:
    report = soak(tmp_path, 7, SHORT)
    check(report)
    assert report.accepted > 100
    assert min(report.worker_kills, report.attacks["api"], report.attacks["redis"]) >= 1


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS * 1.5 + 180)
def test_a_long_soak(tmp_path: Path) -> None:
    report = soak(tmp_path, SECONDS, Pace())
    check(report)
    share = min(1.0, SECONDS / 300)
    assert report.accepted >= 10_000 * share
    assert report.worker_kills >= 50 * share
    kinds = ("api", "redis", "flush", "full redis", "full blobs")
    assert min(report.attacks[kind] for kind in kinds) >= int(10 * share)
    assert report.too_large >= int(100 * share)
