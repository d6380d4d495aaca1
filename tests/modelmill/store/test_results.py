"""Large results that cannot be written: one for good, others only now. The other jobs of a group end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import DataError, RedisError, ResponseError

from modelmill.settings import MIB, Settings
from modelmill.states import Status
from modelmill.store import Claimed, Outcome, Released, Settlement, WorkerStore, keys
from modelmill.store.server_errors import is_temporary
from tests.support.blobs import unwritable
from tests.support.servers import Valkey
from tests.support.store import claim, complete, read_job, submission, submit

OK, NOT_NOW, TOO_LARGE, UNWRITABLE = (
    *(Settlement.OK, Settlement.NOT_NOW),
    *(Settlement.TOO_LARGE, Settlement.UNWRITABLE),
)


@dataclass
class Own:
    """A server of this test, and its store."""

    settings: Settings
    store: WorkerStore
    raw: redis.Redis

    def claim_of(self, count: int) -> list[Claimed]:
        submit(self.settings, *(submission() for _ in range(count)))
        return list(claim(self.store, count).jobs)

    def command(self, *words: str) -> None:
        send: Any = self.raw.execute_command
        send(*words)

    def result_of(self, job_id: str) -> bytes | None:
        record = read_job(self.store, job_id)
        assert record is not None
        return record.result_json


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Own]]:
    started: list[tuple[Own, Valkey]] = []

    def act(*options: str, **more: object) -> Own:
        server = Valkey(tmp_path, *options)
        own = settings.model_copy(update={"redis_url": server.url, **more})
        started.append((Own(own, WorkerStore(own), redis.Redis.from_url(server.url)), server))
        return started[-1][0]

    yield act
    for own, server in started:
        own.store.close()
        own.raw.close()
        server.stop()


def end(job: Claimed, size: int) -> Outcome:
    return Outcome(job.id, job.fence, Status.COMPLETE, b'"' + b"x" * (size - 2) + b'"')


@pytest.mark.parametrize("size", [MIB + 1, 3 * MIB])
def test_a_result_longer_than_the_servers_longest_value_is_told_from_an_outage(
    start: Callable[..., Own], size: int
) -> None:
    own = start("--proto-max-bulk-len", "1mb")
    jobs = own.claim_of(4)
    outcomes = [end(jobs[0], 10), end(jobs[1], size), end(jobs[2], MIB), end(jobs[3], 10)]

    assert own.store.settle(outcomes) == [OK, TOO_LARGE, OK, OK]

    assert own.result_of(jobs[2].id) == outcomes[2].result
    assert own.raw.zrange(keys.LEASES, 0, -1) == [jobs[1].id.encode()], "unchanged"


def test_a_result_that_breaks_the_connection_holds_no_other_back(start: Callable[..., Own]) -> None:
    own = start("--proto-max-bulk-len", "1mb")
    # A hosted server that does not tell its limit.
    own.command("ACL", "SETUSER", "default", "-config")
    jobs = own.claim_of(3)

    verdicts = own.store.settle([end(jobs[0], 10), end(jobs[1], 20 * MIB), end(jobs[2], 10)])

    # The server's reason is read, or lost with the connection.
    assert verdicts[1] in (NOT_NOW, UNWRITABLE)
    assert (verdicts[0], verdicts[2]) == (OK, OK)


def test_an_end_that_the_script_refuses_holds_no_other_back(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    ids = submit(settings, *(submission() for _ in range(5)))
    outcomes = complete(claim(store))
    # No process writes such a record.
    raw_redis.hset(keys.JOB + ids[2], "ttl_ms", "no number")

    assert store.settle(outcomes) == [OK, OK, UNWRITABLE, OK, OK]

    raw_redis.hdel(keys.JOB + ids[2], "ttl_ms")
    assert store.settle([outcomes[2]]) == [OK]
    assert {(job.status, job.ends) for job_id in ids if (job := read_job(store, job_id))} == {
        (Status.COMPLETE, 1)
    }


def test_a_full_blob_folder_holds_back_its_results_only(start: Callable[..., Own], tmp_path: Path) -> None:
    own = start(blob_url=str(tmp_path / "blobs"), blob_min_bytes=MIB)
    jobs = own.claim_of(5)
    sizes = [10, MIB, keys.INLINE_BYTES + 1, 2 * MIB]
    outcomes = [end(job, size) for job, size in zip(jobs, sizes, strict=False)]
    group: list[Outcome | Released] = [*outcomes, Released(jobs[4].id, jobs[4].fence)]

    with unwritable(tmp_path / "blobs"):
        assert own.store.settle(group) == [OK, NOT_NOW, OK, NOT_NOW, OK]

    assert [own.store.is_for_blobs(each) for each in group] == [False, True, False, True, False]
    assert own.store.settle([outcomes[1]]) == [OK]
    assert own.result_of(jobs[1].id) == outcomes[1].result
    assert own.raw.hexists(keys.JOB + jobs[1].id, "out_blob")


def test_a_result_for_the_blob_store_can_be_written_to_redis(
    start: Callable[..., Own], tmp_path: Path
) -> None:
    own = start("--proto-max-bulk-len", "2mb", blob_url=str(tmp_path / "blobs"), blob_min_bytes=MIB)
    jobs = own.claim_of(3)
    outcomes = [end(jobs[0], 2 * MIB), end(jobs[1], 2 * MIB + 1), end(jobs[2], 10)]

    assert own.store.settle(outcomes, spill=True) == [OK, TOO_LARGE, OK]

    assert own.result_of(jobs[0].id) == outcomes[0].result
    assert own.raw.hget(keys.JOB + jobs[0].id, "out") == keys.out(jobs[0].id, jobs[0].fence).encode()
    assert list((tmp_path / "blobs" / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "undo"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (
            ("CONFIG", "SET", "min-replicas-to-write", "3"),
            ("CONFIG", "SET", "min-replicas-to-write", "0"),
        ),
        (("ACL", "SETUSER", "default", "-set"), ("ACL", "SETUSER", "default", "+set")),
        (("CONFIG", "SET", "requirepass", "word"), ()),
    ],
    ids=["out of memory", "a replica", "no replicas", "no permission", "no password"],
)
def test_what_a_server_refuses_in_some_state_may_succeed_later(
    start: Callable[..., Own], command: tuple[str, ...], undo: tuple[str, ...]
) -> None:
    own = start()
    own.command(*command)
    other = redis.Redis.from_url(own.settings.redis_url)

    with pytest.raises(RedisError) as refused:
        other.set("key", "x" * 1000)

    assert is_temporary(refused.value)
    if undo:
        own.command(*undo)
        assert other.set("key", "x")
    other.close()


def test_what_a_server_refuses_of_a_value_is_refused_for_good(raw_redis: redis.Redis) -> None:
    raw_redis.lpush("list", "x")
    errors = []
    for act in (
        lambda: raw_redis.set("list", "x", ex=-1),
        lambda: raw_redis.incr("list"),
        lambda: raw_redis.eval("return redis.call('HGET', 'list', 'x')", 0),
        lambda: raw_redis.eval("return 1 + nil", 0),
        lambda: raw_redis.setrange("long", 2**40, "x"),
        lambda: raw_redis.set("key", {"no": "value"}),  # type: ignore[arg-type]
    ):
        with pytest.raises((ResponseError, DataError)) as refused:
            act()
        errors.append(refused.value)

    assert [is_temporary(error) for error in errors] == [False] * 6


@pytest.mark.parametrize(
    "text",
    [
        "MISCONF Errors writing to the AOF file: No space left on device",
        "BUSY Redis is busy running a script.",
        "UNKILLABLE Sorry the script already executed write commands.",
        "NOREPLICAS Not enough good replicas to write.",
    ],
)
def test_states_without_a_class_of_their_own_are_known_by_their_code(text: str) -> None:
    assert is_temporary(ResponseError(text))
