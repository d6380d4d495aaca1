"""The scripts on a real Valkey against a model in plain Python, step by step.

Hypothesis composes the steps: submit, claim, beat, settle, cancel, delete, reap, sweep, replays of each,
wrong fences, time that passes, restarts. After each step the whole of the store must be what the model says.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from modelmill.settings import Settings
from modelmill.states import Lane, Status
from modelmill.store import (
    OPENING,
    ApiStore,
    ClaimRequest,
    JobProgress,
    Outcome,
    Released,
    Return,
    Submission,
    Verdict,
    WorkerStore,
    keys,
)
from tests.modelmill.store.state_model import (
    BELL_EVERY,
    CALLERS,
    CLAIM_TTL_S,
    DEADLINE_S,
    FILE_BYTES,
    FILE_TTL_S,
    IDEMPOTENCY_TTL_S,
    KEEP_BYTES,
    LEASE_S,
    LONG_TTL_S,
    MAX_BYTES,
    MAX_DELIVERIES,
    MAX_DEPTH,
    MODELS,
    QUOTA,
    RATE,
    RESULT_TTL_S,
    SHORT_TTL_S,
    TASK,
    TIME_STEP_S,
    ModelFile,
    ModelJob,
    StoreModel,
)
from tests.support.exhaustive import exhaustive

SEED = int(os.environ.get("HYPOTHESIS_SEED") or random.SystemRandom().randrange(2**32))
STEPS = 50

LARGE = b'"' + b"x" * keys.INLINE_BYTES + b'"'
ABOUT_S = 60.0
"""More than the real time of an example, and less than a step of the model."""

PLAIN: dict[str, Any] = {}
HOOKS = {"webhook": "https://example.com/", "webhook_events": ("started", "progress", "ended")}
FILES = {"file:1": "file-of-somebody", "https://example.com/a.png": "file-of-somebody"}
EXTRAS: tuple[dict[str, Any], ...] = (
    *(PLAIN, PLAIN, PLAIN),
    {
        "result_ttl_s": SHORT_TTL_S,
        "files": FILES,
        "webhook": "https://example.com/",
        "webhook_events": ("ended",),
    },
    {"result_ttl_s": LONG_TTL_S, "tags": ("a", "b"), "metadata": {"n": 1}, **HOOKS},
    {"result_ttl_s": LONG_TTL_S, "blob": True, **HOOKS},
    {"files": {"file:1": "file-of-anonymous"}},
    {"result_ttl_s": SHORT_TTL_S, "limits": QUOTA},
    {"limits": RATE},
)
"""Optional parts of a submission. ``blob`` means that the payload is in the blob store."""

OUTCOMES = st.lists(
    st.sampled_from(
        ("complete", "complete", "large", "large", "failed", "canceled", "released", "suspect", "crashed")
    ),
    min_size=1,
    max_size=4,
)

PASS_TIME = """
-- Nobody waits: everything that holds a time is moved back instead.
local ms = tonumber(ARGV[1])
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 then
    if left <= ms then redis.call('DEL', key) else redis.call('PEXPIRE', key, left - ms) end
  end
end
for _, name in ipairs({K.leases, K.deadlines, K.expiring, K.files, K.trash, K.outbox}) do
  for _, member in ipairs(redis.call('ZRANGE', name, 0, -1)) do redis.call('ZINCRBY', name, -ms, member) end
end
for _, key in ipairs(redis.call('KEYS', K.rate .. '*')) do
  redis.call('SET', key, string.format('%.3f', redis.call('GET', key) - ms), 'KEEPTTL')
end
for _, key in ipairs(redis.call('KEYS', K.job .. '*')) do
  for _, name in ipairs({'deadline_ms', 'idem_until_ms'}) do
    if redis.call('HEXISTS', key, name) == 1 then redis.call('HINCRBY', key, name, -ms) end
  end
end
if redis.call('EXISTS', K.reaper) == 1 then redis.call('HINCRBY', K.reaper, 'grace_until_ms', -ms) end
"""

SNAPSHOT = """
-- Everything that there is, with the time that it has left.
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, content = redis.call('TYPE', key).ok, false
  if kind == 'hash' then content = redis.call('HGETALL', key)
  elseif kind == 'zset' then content = redis.call('ZRANGE', key, 0, -1)
  elseif kind == 'set' then content = redis.call('SMEMBERS', key)
  elseif kind == 'list' then content = redis.call('LRANGE', key, 0, -1)
  elseif kind == 'stream' then
    content = {}
    for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do table.insert(content, entry[2][2]) end
  end
  table.insert(found, {key, redis.call('PTTL', key), content})
end
return cjson.encode(found)
"""


@dataclass
class Snapshot:
    """The store at one moment, read in one step."""

    lives: dict[str, int]
    """Milliseconds that each key has left; -1 for keys that do not expire."""
    content: dict[str, Any]

    def hash(self, key: str) -> dict[str, str]:
        flat = self.content.get(key) or []
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def members(self, key: str) -> list[str]:
        return list(self.content.get(key) or [])

    def named(self, prefix: str) -> set[str]:
        return {key.removeprefix(prefix) for key in self.lives if key.startswith(prefix)}

    def lives_until(self, key: str, seconds: float) -> bool:
        """Whether the key has about this many seconds left."""
        return abs(self.lives.get(key, -2) / 1000 - seconds) < ABOUT_S


class Machine(RuleBasedStateMachine):
    """The steps. Each one is done to the model and to the store, and both are compared."""

    store: WorkerStore
    async_store: ApiStore
    runner: asyncio.Runner
    raw: redis.Redis
    log: pytest.LogCaptureFixture

    def __init__(self) -> None:
        super().__init__()
        self.raw.flushall()
        self.log.clear()
        self.model = StoreModel()
        self.claims: list[tuple[str, str, list[str], int]] = []
        """Fence, model, ids, and when the claim expires."""
        self.settlements: list[Outcome | Released] = []
        self.ends: dict[str, dict[str, str]] = {}
        """Each record as it was when its job ended."""
        self.run_id_known = False
        self.grace_until = 0

    def jobs(self) -> list[ModelJob]:
        return list(self.model.jobs.values())

    @initialize(
        first=st.lists(
            st.tuples(st.sampled_from(Lane), st.booleans(), st.sampled_from(EXTRAS)), min_size=2, max_size=8
        )
    )
    def some_jobs(self, first: list[tuple[Lane, bool, dict[str, Any]]]) -> None:
        self.upload()
        for lane, batched, extra in first:
            self.submit_one(
                MODELS[0],
                lane,
                batched,
                900 if batched else 10,
                deadline=batched,
                key="",
                twice=False,
                caller="somebody",
                extra=extra,
            )

    @rule()
    def upload(self) -> None:
        """One file of each caller, if it does not exist yet: in Redis, or in the blob store."""
        for owner, blob in zip(CALLERS, (None, "file/of-somebody"), strict=True):
            name = f"file-of-{owner}"
            if name not in self.model.files:
                self.model.files[name] = ModelFile(owner, self.model.now + FILE_TTL_S, blob)
                self.model.trash.pop(blob or "", None)
                pipe = self.raw.pipeline()
                pipe.hset(keys.FILE + name, mapping={"owner": owner, "bytes": FILE_BYTES, "refs": 0})
                if blob:
                    pipe.hset(keys.FILE + name, "blob", blob)
                until_ms = self.redis_ms() + FILE_TTL_S * 1000
                pipe.zadd(keys.FILES, {name: until_ms})
                pipe.hincrby(keys.TOTALS, "file_bytes", FILE_BYTES)
                pipe.zrem(keys.TRASH, blob or "")
                pipe.execute()

    def redis_ms(self) -> int:
        seconds, micros = self.raw.time()
        return int(seconds) * 1000 + int(micros) // 1000

    @rule(
        model=st.sampled_from(MODELS),
        lane=st.sampled_from(Lane),
        batched=st.booleans(),
        size=st.sampled_from((10, 10, 10, 900, 2500)),
        deadline=st.booleans(),
        key=st.sampled_from(("", "", "", "a", "b")),
        twice=st.booleans(),
        caller=st.sampled_from(CALLERS),
        extra=st.sampled_from(EXTRAS),
        count=st.integers(1, 4),
    )
    def submit(self, count: int, **what: Any) -> None:
        """Several similar ones: more than the limits allow, or with the same idempotency key."""
        for _ in range(count):
            self.submit_one(**what)

    def submit_one(
        self,
        model: str,
        lane: Lane,
        batched: bool,
        size: int,
        deadline: bool,
        key: str,
        twice: bool,
        caller: str,
        extra: dict[str, Any],
    ) -> None:
        job_id = str(uuid.uuid4())
        job = Submission(
            id=job_id,
            task=TASK,
            model=model,
            body=b"x" * size,
            batched=batched,
            items=3 if batched else 1,
            lane=lane,
            caller=caller,
            idempotency_key=key,
            bell_every=BELL_EVERY,
            expires_in_s=DEADLINE_S if deadline else None,
            **extra | ({"blob": f"in/{job_id}"} if "blob" in extra else {}),
        )
        depth = len(self.model.ready(model))
        bell_sent = bool(self.raw.exists(keys.BELL_SENT + model))
        expected = self.model.submitted(job)
        answer = self.runner.run(self.async_store.submit(job))
        assert (answer.verdict, answer.id) == (expected.verdict, expected.id)
        assert answer.remaining == expected.remaining
        if expected.retry_after_s is not None:
            assert 0 <= expected.retry_after_s - answer.retry_after_s < ABOUT_S
        if expected.verdict is not Verdict.ACCEPTED:
            assert not answer.bell
            assert not self.raw.exists(keys.INPUT + job.id)
            return
        if (depth + 1) % BELL_EVERY == 0 or (depth == 0 and not bell_sent):
            assert answer.bell
        elif depth:
            assert not answer.bell
        if twice:
            # The reply was lost, and the client library sent the same command again.
            again = self.runner.run(self.async_store.submit(job))
            assert (again.verdict, again.id) == (Verdict.ACCEPTED, job.id)

    @precondition(lambda self: self.model.jobs)
    @rule(pick=st.integers(0, 10**6))
    def submit_late_replay(self, pick: int) -> None:
        """A late duplicate of a submission, while its record still exists."""
        job = self.jobs()[pick % len(self.jobs())]
        self.model.submitted_again(job)
        answer = self.runner.run(self.async_store.submit(job.submission))
        assert (answer.verdict, answer.id) == (Verdict.ACCEPTED, job.id)

    @rule(
        model=st.sampled_from(MODELS),
        count=st.sampled_from((1, 2, 3, 8, 16)),
        max_bytes=st.sampled_from((100, 2000, 10**9)),
    )
    def claim(self, model: str, count: int, max_bytes: int) -> None:
        fence = uuid.uuid4().hex
        expected = self.model.claimed(model, fence, count, max_bytes)
        claims = self.store.claim(ClaimRequest(model, fence, "node", count, max_bytes))
        assert [job.id for job in claims.jobs] == [job.id for job in expected]
        assert [job.deliveries for job in claims.jobs] == [job.deliveries for job in expected]
        assert [job.suspect for job in claims.jobs] == [job.suspect for job in expected]
        assert [job.files for job in claims.jobs] == [job.submission.files for job in expected]
        assert [job.blob for job in claims.jobs] == [job.submission.blob for job in expected]
        assert claims.remaining == len(self.model.ready(model))
        in_redis = [job for job in claims.jobs if job.blob is None]
        assert self.store.inputs(in_redis) == [self.model.jobs[job.id].body for job in in_redis]
        if expected:
            self.claims.append((fence, model, [job.id for job in expected], self.model.now + CLAIM_TTL_S))

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 10**6))
    def replay_claim(self, pick: int) -> None:
        remembered = [claim for claim in self.claims if claim[3] > self.model.now]
        if not remembered:
            return
        fence, model, ids, _ = remembered[pick % len(remembered)]
        claims = self.store.claim(ClaimRequest(model, fence, "node", 16, 10**9))
        held = [self.model.jobs[job_id] for job_id in ids if self.model.holds(job_id, fence)]
        assert [(job.id, job.deliveries) for job in claims.jobs] == [(job.id, job.deliveries) for job in held]

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 10**6), wrong=st.booleans(), progress=st.booleans())
    def beat(self, pick: int, wrong: bool, progress: bool) -> None:
        fence, _, ids, _ = self.claims[pick % len(self.claims)]
        if wrong:
            fence = "stranger"
        news = {ids[0]: JobProgress(1, 2, "steps")} if progress else {}
        answer = self.store.beat([(job_id, fence) for job_id in ids], news)
        held = {job_id for job_id in ids if self.model.holds(job_id, fence)}
        assert answer.lost == set(ids) - held
        assert answer.cancel == {job_id for job_id in held if self.model.jobs[job_id].cancel}
        for job_id in held:
            self.model.jobs[job_id].leased_until = self.model.now + LEASE_S
            if job_id in news:
                self.model.progressed(self.model.jobs[job_id])
        if held and self.claims[pick % len(self.claims)][3] > self.model.now:
            # The list of a claim lives while a worker renews the lease of at least one of its jobs.
            index = pick % len(self.claims)
            self.claims[index] = (*self.claims[index][:3], self.model.now + CLAIM_TTL_S)

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 10**6), how=OUTCOMES, wrong=st.booleans(), item=st.integers(OPENING, 2))
    def settle(self, pick: int, how: list[str], wrong: bool, item: int) -> None:
        """By any claim that was ever made, also one that no longer holds the lease."""
        fence, _, ids, _ = self.claims[pick % len(self.claims)]
        self.settle_all(ids, "stranger" if wrong else fence, how, item)

    @rule(model=st.sampled_from(MODELS), count=st.integers(1, 4), how=OUTCOMES, item=st.integers(OPENING, 2))
    def claim_and_settle(self, model: str, count: int, how: list[str], item: int) -> None:
        known = len(self.claims)
        self.claim(model, count, 10**9)
        if len(self.claims) > known:
            fence, _, ids, _ = self.claims[-1]
            self.settle_all(ids, fence, how, item)

    def settle_all(self, ids: list[str], fence: str, how: list[str], item: int) -> None:
        outcomes = [
            outcome_of(job_id, fence, kind, item if self.is_batched(job_id) else min(item, 0))
            for job_id, kind in zip(ids, how, strict=False)
        ]
        self.check_settle(outcomes)
        self.settlements = [*self.settlements, *outcomes][-30:]

    @precondition(lambda self: self.settlements)
    @rule(pick=st.integers(0, 10**6))
    def replay_settle(self, pick: int) -> None:
        self.check_settle([self.settlements[pick % len(self.settlements)]])

    @precondition(lambda self: self.model.live())
    @rule(pick=st.integers(0, 10**6), times=st.integers(1, 3), item=st.sampled_from((OPENING, 0)))
    def crash_alone(self, pick: int, times: int, item: int) -> None:
        """A child dies again and again while one job is in progress alone."""
        job = self.model.live()[pick % len(self.model.live())]
        for _ in range(times):
            if job.place == "ready" and job is self.model.ready(job.model)[0]:
                self.claim(job.model, 1, 10**9)
            if job.place == "leased":
                assert job.fence is not None
                self.check_settle([Released(job.id, job.fence, Return.CRASHED, item)])

    def is_batched(self, job_id: str) -> bool:
        return job_id in self.model.jobs and self.model.jobs[job_id].batched

    def check_settle(self, outcomes: list[Outcome | Released]) -> None:
        expected = [
            self.model.settled(outcome, isinstance(outcome, Outcome) and outcome.result == LARGE)
            for outcome in outcomes
        ]
        assert self.store.settle(outcomes) == expected

    @precondition(lambda self: any(job.batched for job in self.jobs()))
    @rule(pick=st.integers(0, 10**6), index=st.integers(0, 2))
    def save_parts(self, pick: int, index: int) -> None:
        batched = [job for job in self.jobs() if job.batched]
        job = batched[pick % len(batched)]
        self.store.save_parts(job.id, {index: "{}"})
        if not job.status.is_terminal:
            job.parts.add(index)
        if job.place == "leased":
            self.model.progressed(job)
        assert set(self.store.parts(job.id)) == job.parts

    @precondition(lambda self: self.model.jobs)
    @rule(pick=st.integers(0, 10**6))
    def cancel(self, pick: int) -> None:
        job = self.jobs()[pick % len(self.jobs())]
        expected = self.model.canceled(job)
        assert self.runner.run(self.async_store.cancel(job.id)) == expected
        assert self.runner.run(self.async_store.cancel("unknown")) == "missing"

    @precondition(lambda self: self.model.jobs)
    @rule(picks=st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
    def delete(self, picks: list[int]) -> None:
        """Maybe the same job twice."""
        known = list(self.model.jobs)
        ids = [known[pick % len(known)] for pick in picks] + ["unknown"]
        expected = [self.model.deleted(job_id) for job_id in ids]
        assert self.runner.run(self.async_store.delete(ids)) == expected
        for job_id in ids:
            assert self.runner.run(self.async_store.get(job_id)) is None

    @rule()
    def reap(self) -> None:
        silent = [model for model in MODELS if not self.raw.exists(keys.BELL_SENT + model)]
        if not self.run_id_known:
            self.run_id_known, self.grace_until = True, self.model.now + LEASE_S
        expected = self.model.reaped(with_leases=self.model.now >= self.grace_until)
        answer = self.store.reap()
        assert (answer.returned, answer.expired) == expected
        waiting = {model for model in MODELS if self.model.ready(model)}
        assert waiting & set(silent) <= set(answer.bells) <= waiting

    @rule(deleted=st.booleans())
    def sweep(self, deleted: bool) -> None:
        expected = self.model.swept()
        found = self.runner.run(self.async_store._connection.run_script("sweep", [FILE_TTL_S * 1000, 100]))
        assert {name.decode() for name in found} == expected
        if deleted and expected:
            # As the sweeper does after it has deleted the blobs.
            self.raw.zrem(keys.TRASH, *expected)
            for name in expected:
                del self.model.trash[name]

    @rule(steps=st.sampled_from((1, 2, 3, 5, 20)))
    def time_passes(self, steps: int) -> None:
        for job_id in self.model.pass_time(steps * TIME_STEP_S):
            self.ends.pop(job_id, None)
        self.raw.eval(keys.lua_table(PASS_TIME) + PASS_TIME, 0, str(steps * TIME_STEP_S * 1000))

    @rule()
    def server_restarts(self) -> None:
        """A restart, as the scripts see it: another run id than before, and no script is loaded."""
        self.raw.script_flush()
        if self.run_id_known:
            self.raw.hset(keys.REAPER, "run_id", "the server before")
        self.run_id_known = False

    @rule()
    def scripts_are_forgotten(self) -> None:
        self.raw.script_flush()

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        rows = json.loads(self.raw.eval(SNAPSHOT, 0))
        seen = Snapshot(
            {key: left for key, left, _ in rows}, {key: content for key, _, content in rows if content}
        )
        self.check_places(seen)
        self.check_records(seen)
        self.check_totals(seen)
        self.check_belongings(seen)
        self.check_keys(seen)
        lines = [line.getMessage() for line in self.log.records if line.name == "modelmill.store"]
        assert sorted(lines) == sorted(self.model.logged)

    def check_places(self, seen: Snapshot) -> None:
        for model in MODELS:
            ready = [job.id for job in self.model.ready(model)]
            assert seen.members(keys.READY + model) == ready
            if ready:
                # Otherwise no reaper would ever send a bell for it.
                assert model in seen.members(keys.MODELS)
        assert set(seen.members(keys.LEASES)) == {job.id for job in self.model.leased()}
        dated = {job.id for job in self.model.live() if job.deadline is not None and not job.started}
        assert set(seen.members(keys.DEADLINES)) == dated
        for caller, ids in self.model.index.items():
            assert seen.members(keys.JOBS + caller) == ids
        expiring = {f"{job_id} {caller}" for job_id, caller in self.model.expiring}
        assert set(seen.members(keys.EXPIRING)) == expiring
        assert set(seen.members(keys.OUTBOX)) == self.model.outbox
        assert set(seen.members(keys.TRASH)) == self.model.trash.keys()

    def check_records(self, seen: Snapshot) -> None:
        assert seen.named(keys.JOB) == self.model.jobs.keys()
        for job in self.jobs():
            record = seen.hash(keys.JOB + job.id)
            assert record["status"] == job.status.value
            assert int(record["deliveries"]) == job.deliveries
            assert record.get("fence") == job.fence
            assert ("gone" in record, "cancel" in record) == (job.gone, job.cancel)
            assert json.loads(record.get("tags", "[]")) == list(job.submission.tags)
            assert json.loads(record.get("metadata", "null")) == job.submission.metadata
            assert record.get("ends", "0") == ("1" if job.status.is_terminal else "0")
            assert ("finished_ms" in record) == job.status.is_terminal
            if job.status.is_terminal:
                error = json.loads(record.get("error", "{}"))
                assert error.get("code") == job.error_code
                if "message" in error:
                    # The store wrote this error, not a worker.
                    assert error["deliveries"] == job.deliveries
                assert int(record["expires_ms"]) - int(record["finished_ms"]) == job.ttl_s * 1000
                moving = {"deadline_ms", "idem_until_ms"}
                ended = {name: value for name, value in record.items() if name not in moving}
                assert self.ends.setdefault(job.id, ended) == ended

    def check_totals(self, seen: Snapshot) -> None:
        totals, live = seen.hash(keys.TOTALS), self.model.live()
        assert int(totals.get("jobs", 0)) == len(live)
        assert int(totals.get("bytes", 0)) == sum(len(job.body) for job in live)
        assert int(totals.get("file_bytes", 0)) == len(self.model.files) * FILE_BYTES
        assert {name: int(value) for name, value in seen.hash(keys.COUNTERS).items()} == self.model.counters
        counted = seen.hash(keys.OPEN)
        for caller in CALLERS:
            assert int(counted.get(caller, 0)) == len(self.model.live(caller=caller))

    def check_belongings(self, seen: Snapshot) -> None:
        """The keys besides the records: requests, results, events, webhooks, files."""
        for job in self.jobs():
            if job.gone_at is not None:
                left_s = job.gone_at - self.model.now
                assert seen.lives_until(keys.JOB + job.id, left_s)
                assert (keys.INPUT + job.id in seen.lives) == (job.input_until is not None)
                if job.input_until is not None:
                    assert seen.lives_until(keys.INPUT + job.id, job.input_until - self.model.now)
                if job.large_under is not None:
                    assert seen.lives_until(keys.out(job.id, job.large_under), left_s)
                if job.events:
                    assert seen.lives_until(keys.EVENTS + job.id, left_s)
            assert seen.members(keys.EVENTS + job.id) == job.events
            assert seen.named(f"{keys.PARTS}{job.id}") == ({""} if job.parts else set())
        assert seen.named(keys.EVENTS) <= self.model.jobs.keys()
        assert seen.named(keys.PARTS) <= self.model.jobs.keys()
        assert seen.named(keys.INPUT) <= self.model.jobs.keys() | self.model.orphans.keys()
        for job_id, until in self.model.orphans.items():
            assert seen.lives_until(keys.INPUT + job_id, until - self.model.now)
        assert seen.named(keys.HOOKS) == self.model.hooked.keys()
        assert seen.named(keys.IDEMPOTENCY) == {":".join(key) for key in self.model.idempotency}
        for owner, entry in self.model.idempotency.items():
            if entry.until is not None:
                assert seen.lives_until(keys.IDEMPOTENCY + ":".join(owner), entry.until - self.model.now)
        assert seen.named(keys.FILE) == set(seen.members(keys.FILES)) == self.model.files.keys()
        for name, file in self.model.files.items():
            assert int(seen.hash(keys.FILE + name)["refs"]) == file.refs

    def check_keys(self, seen: Snapshot) -> None:
        live = self.model.live()
        for job in live:
            assert seen.lives.get(keys.JOB + job.id) == -1
            assert seen.lives.get(keys.INPUT + job.id) == (-1 if job.submission.blob is None else None)
        forever = {
            *(keys.LEASES, keys.DEADLINES, keys.MODELS, keys.TURNS, keys.SEQUENCE, keys.TOTALS),
            *(keys.COUNTERS, keys.REAPER, keys.OPEN, keys.EXPIRING, keys.FILES, keys.TRASH, keys.OUTBOX),
            *(keys.READY + model for model in MODELS),
            *(keys.JOBS + caller for caller in CALLERS),
            *(keys.FILE + name for name in self.model.files),
            *(prefix + job.id for job in live for prefix in (keys.JOB, keys.INPUT, keys.PARTS, keys.EVENTS)),
            *(
                keys.IDEMPOTENCY + ":".join(name)
                for name, key in self.model.idempotency.items()
                if key.until is None
            ),
        }
        for owner, entry in self.model.idempotency.items():
            assert (seen.lives[keys.IDEMPOTENCY + ":".join(owner)] == -1) == (entry.until is None)
        for key, left in seen.lives.items():
            assert left >= 0 or key in forever, f"{key} would never expire"


def outcome_of(job_id: str, fence: str, kind: str, item: int) -> Outcome | Released:
    if kind in ("released", "suspect", "crashed"):
        return Released(job_id, fence, Return(kind), item)
    if kind == "failed":
        return Outcome(job_id, fence, Status.FAILED, error={"code": "inference_failed"})
    if kind == "canceled":
        return Outcome(job_id, fence, Status.CANCELED)
    return Outcome(job_id, fence, Status.COMPLETE, LARGE if kind == "large" else b'{"ok":true}')


@pytest.fixture
def machine(
    settings: Settings, raw_redis: redis.Redis, caplog: pytest.LogCaptureFixture
) -> Iterator[type[Machine]]:
    caplog.set_level("INFO", "modelmill.store")
    limits = settings.model_copy(
        update={
            "lease_s": float(LEASE_S),
            "result_ttl_s": RESULT_TTL_S,
            "idempotency_ttl_s": IDEMPOTENCY_TTL_S,
            "max_queue_depth": MAX_DEPTH,
            "max_queued_bytes": MAX_BYTES,
            "max_deliveries": MAX_DELIVERIES,
            "keep_request_bytes": KEEP_BYTES,
        }
    )
    with asyncio.Runner() as runner:

        class Connected(Machine):
            store = WorkerStore(limits)
            async_store = ApiStore(limits)
            raw = raw_redis
            log = caplog

        Connected.runner = runner
        yield Connected
        Connected.store.close()
        runner.run(Connected.async_store.close())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("examples", [50, exhaustive(200)])
def test_the_scripts_do_what_a_model_in_plain_python_does(machine: type[Machine], examples: int) -> None:
    print(f"HYPOTHESIS_SEED={SEED}")
    run_state_machine_as_test(
        seed(SEED)(machine),
        settings=hypothesis_settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
