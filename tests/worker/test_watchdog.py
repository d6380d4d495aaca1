"""The watchdog: which job a death counts against, and when a child hangs."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import Claimed, ClaimRequest, WorkerStore, keys
from modelmill_worker.child_state import Recorder
from modelmill_worker.processes.watchdog import MAX_LOAD_DEATHS, Watchdog
from tests.support.jobs import submit
from tests.support.processes import is_running, wait_until
from tests.support.store import read_job

CHILD = """
import sys, threading, time
from pathlib import Path
from modelmill_worker.child_state import Recorder

def keep_running(items):
    # Short batches, one after another.
    def run():
        while True:
            recorder.note_forward("noop", items)
            time.sleep(0.02)
    threading.Thread(target=run, daemon=True).start()

recorder = Recorder(Path(sys.argv[1]))
recorder.start_file()
exec(sys.argv[2])
print(flush=True)
time.sleep(float(sys.argv[3]))
"""
"""A child that writes its state, and then hangs and dies."""


def start_child(folder: Path, notes: str, hang_s: float = 0.0) -> subprocess.Popen[str]:
    """Starts a child. On return it has run ``notes``."""
    command = [sys.executable, "-c", CHILD, str(folder), notes, str(hang_s)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    return child


@pytest.fixture
def watchdog(settings: Settings, store: WorkerStore, tmp_path: Path) -> Watchdog:
    return Watchdog(settings.model_copy(update={"batch_timeout_s": 0.2}), store, Recorder(tmp_path))


def claim(store: WorkerStore, count: int) -> list[Claimed]:
    return list(store.claim(ClaimRequest("noop", uuid.uuid4().hex, "node", count, 2**20)).jobs)


def notes(
    jobs: Sequence[Claimed], *, forward: Sequence[Claimed] = (), preparing: Sequence[Claimed] = ()
) -> str:
    """What a child notes that has claimed ``jobs`` and has some of them in progress."""

    def members(some: Sequence[Claimed]) -> str:
        return repr([(job.id, job.fence, 0) for job in some])

    noted = [f"recorder.note_claim({fence!r})" for fence in {job.fence for job in jobs}]
    noted.append("recorder.note_draining('noop')")
    if preparing:
        noted.append(f"recorder.note_preparing({members(preparing)})")
    if forward:
        noted.append(f"recorder.note_forward('noop', {members(forward)})")
    return "; ".join(noted)


def fate(raw_redis: redis.Redis, jobs: Sequence[Claimed]) -> list[str]:
    """What the death of a child means for each job: untouched, a suspect, or one more crash."""

    def of(job: Claimed) -> str:
        suspect, crashes = raw_redis.hmget(keys.JOB + job.id, "suspect", "crashes:0")
        return "crashed" if crashes else "suspect" if suspect else "untouched"

    return [of(job) for job in jobs]


def test_a_crash_counts_for_an_item_that_was_prepared_alone_and_the_third_ends_its_job(
    settings: Settings, store: WorkerStore, watchdog: Watchdog, raw_redis: redis.Redis, tmp_path: Path
) -> None:
    submit(settings, "noop", *["a"] * 3)
    jobs = claim(store, 3)
    start_child(tmp_path, notes(jobs, preparing=jobs[:1])).wait()
    watchdog.check()
    assert fate(raw_redis, jobs) == ["crashed", "untouched", "untouched"]
    for _ in range(2):
        (alone,) = claim(store, 3)
        assert (alone.id, alone.suspect) == (jobs[0].id, True)
        start_child(tmp_path, notes([alone], preparing=[alone])).wait()
        watchdog.check()
    record = read_job(store, jobs[0].id)
    assert record is not None
    assert record.error is not None
    assert (record.status, record.error["code"]) == (Status.FAILED, "worker_crashed")
    assert [job.id for job in claim(store, 3)] == [job.id for job in jobs[1:]]


def test_one_in_forward_and_one_in_preparation_are_both_suspects_and_no_crash_counts(
    settings: Settings, store: WorkerStore, watchdog: Watchdog, raw_redis: redis.Redis, tmp_path: Path
) -> None:
    submit(settings, "noop", *["a"] * 4)
    running, ahead = claim(store, 1), claim(store, 3)
    start_child(tmp_path, notes([*running, *ahead], forward=running, preparing=ahead[:1])).wait()
    watchdog.check()
    assert fate(raw_redis, [*running, *ahead]) == ["suspect", "suspect", "untouched", "untouched"]


def test_what_was_prepared_before_the_death_is_no_suspect(
    settings: Settings, store: WorkerStore, watchdog: Watchdog, raw_redis: redis.Redis, tmp_path: Path
) -> None:
    submit(settings, "noop", *["a"] * 2)
    running, ahead = claim(store, 1), claim(store, 1)
    noted = notes([*running, *ahead], forward=running, preparing=ahead) + "; recorder.note_prepared()"
    start_child(tmp_path, noted).wait()
    watchdog.check()
    assert fate(raw_redis, [*running, *ahead]) == ["crashed", "untouched"]


def test_a_child_that_does_not_get_on_with_its_preparations_is_killed(
    settings: Settings, store: WorkerStore, watchdog: Watchdog, raw_redis: redis.Redis, tmp_path: Path
) -> None:
    submit(settings, "noop", *["a"] * 1)
    jobs = claim(store, 1)
    child = start_child(tmp_path, notes(jobs, preparing=jobs), hang_s=60)

    def is_ended() -> bool:
        watchdog.check()
        return not is_running(child.pid)

    wait_until(is_ended, what="the end of a child that hangs")
    watchdog.check()
    assert child.wait() == -9
    assert fate(raw_redis, jobs) == ["crashed"]


def test_a_child_that_waits_for_the_store_is_left_alone(watchdog: Watchdog, tmp_path: Path) -> None:
    child = start_child(
        tmp_path, "recorder.note_preparing([]); recorder.note_draining('noop'); time.sleep(0.3)", hang_s=60
    )
    watchdog.check()
    assert is_running(child.pid)
    child.kill()
    child.wait()


@pytest.mark.parametrize("held", [False, True], ids=["in a run", "between two runs"])
def test_a_child_that_hangs_in_the_blob_store_is_killed_and_no_job_is_blamed(
    settings: Settings,
    store: WorkerStore,
    watchdog: Watchdog,
    raw_redis: redis.Redis,
    tmp_path: Path,
    held: bool,
) -> None:
    submit(settings, "noop", *["a"] * 2)
    jobs = claim(store, 2)
    noted = notes(jobs)
    if held:
        noted += f"; recorder.note_held([{jobs[0].fence!r}]); recorder.note_idle()"
    else:
        noted += f"; keep_running([({jobs[0].id!r}, {jobs[0].fence!r}, 0)])"
    child = start_child(tmp_path, f"{noted}; call = recorder.storing(); call.__enter__()", hang_s=60)

    def is_ended() -> bool:
        watchdog.check()
        return not is_running(child.pid)

    wait_until(is_ended, what="the end of a child that hangs")
    watchdog.check()
    assert child.wait() == -9
    assert fate(raw_redis, jobs) == ["untouched"] * 2
    assert len(claim(store, 2)) == 2, "both are in the queue again"


def test_three_deaths_while_loading_give_a_model_rest_and_a_load_forgets_them(
    watchdog: Watchdog, tmp_path: Path
) -> None:
    child_side = Recorder(tmp_path)
    for _ in range(MAX_LOAD_DEATHS):
        start_child(tmp_path, "recorder.note_loading('noop')").wait()
        watchdog.check()
    deaths = child_side.load_deaths()["noop"]
    assert deaths.count == MAX_LOAD_DEATHS
    assert deaths.not_before > 0
    child_side.forget_load_deaths("noop")
    start_child(tmp_path, "recorder.note_loading('noop')").wait()
    watchdog.check()
    assert child_side.load_deaths()["noop"].count == 1, "not the fourth"


def test_a_child_that_ends_in_peace_is_no_error(
    watchdog: Watchdog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start_child(tmp_path, "recorder.note_draining('noop'); recorder.note_idle()").wait()
    watchdog.check()
    assert [record.levelname for record in caplog.records if record.levelno >= 30] == []


def test_the_state_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    parent = Recorder(tmp_path)
    first = start_child(tmp_path, "recorder.note_draining('first')")
    first.wait()
    state = parent.read()
    assert state is not None
    # The next child starts between this read and the removal.
    second = start_child(tmp_path, "recorder.note_draining('second')", hang_s=60)
    parent.forget(state.pid)
    after = parent.read()
    assert after is not None
    assert (after.pid, after.model) == (second.pid, "second")
    assert parent.take_dead() == []
    second.kill()
    second.wait()
