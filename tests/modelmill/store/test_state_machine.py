"""The scripts on a real Valkey against a model in plain Python, step by step.

Hypothesis composes the steps: submit, claim, beat, settle, cancel, reap, replays of each, wrong fences, time
that passes, restarts. After each step the whole of the store must be what the model says.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    AsyncJobStore,
    Ended,
    JobStore,
    Released,
    Return,
    Settlement,
    Submission,
    Verdict,
    keys,
)
from modelmill.store.records import LANE_RANK

SEED = int(os.environ.get("HYPOTHESIS_SEED") or random.SystemRandom().randrange(2**32))
EXAMPLES, STEPS = 400, 50

TASK, MODELS = "a-task", ("one", "two")
LEASE_S, RESULT_TTL_S, IDEMPOTENCY_TTL_S, DEADLINE_S = 1000, 5000, 2500, 700
CLAIM_TTL_S = 6 * LEASE_S
TIME_STEP_S = 300
"""No multiple of it is one of the durations above, so the real time that a step takes decides nothing."""
MAX_DEPTH, MAX_BYTES, MAX_DELIVERIES, BELL_EVERY, MAX_CRASHES = 12, 6000, 5, 4, 3
LARGE = b'"' + b"x" * keys.INLINE_BYTES + b'"'

OUTCOMES = st.lists(
    st.sampled_from(
        ("complete", "complete", "large", "failed", "canceled", "released", "suspect", "crashed")
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
for _, name in ipairs({K.leases, K.deadlines}) do
  for _, id in ipairs(redis.call('ZRANGE', name, 0, -1)) do redis.call('ZINCRBY', name, -ms, id) end
end
for _, key in ipairs(redis.call('KEYS', K.job .. '*')) do
  if redis.call('HEXISTS', key, 'deadline_ms') == 1 then redis.call('HINCRBY', key, 'deadline_ms', -ms) end
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
  elseif kind == 'list' then content = redis.call('LRANGE', key, 0, -1) end
  table.insert(found, {key, redis.call('PTTL', key), content})
end
return cjson.encode(found)
"""


@dataclass
class ModelJob:
    """What one accepted job should be."""

    id: str
    model: str
    lane: Lane
    sequence: int
    body: bytes
    batched: bool
    deadline: int | None
    """On the clock of the model."""
    status: Status = Status.STARTING
    fence: str | None = None
    leased_until: int | None = None
    started: bool = False
    deliveries: int = 0
    suspect: bool = False
    cancel: bool = False
    crashes: Counter[int] = field(default_factory=Counter)
    parts: set[int] = field(default_factory=set)
    error_code: str | None = None
    gone_at: int | None = None
    """When the record of an ended job expires."""

    @property
    def place(self) -> str:
        if self.status.is_terminal:
            return "ended"
        return "ready" if self.leased_until is None else "leased"


@dataclass
class Snapshot:
    """The store at one moment, read in one step."""

    lives: dict[str, int]
    """Milliseconds left of each key, -1 for those that stay."""
    content: dict[str, Any]

    def hash(self, key: str) -> dict[str, str]:
        flat = self.content.get(key) or []
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def members(self, key: str) -> list[str]:
        return list(self.content.get(key) or [])


class Machine(RuleBasedStateMachine):
    """The steps, each done to both and compared."""

    store: JobStore
    async_store: AsyncJobStore
    runner: asyncio.Runner
    raw: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.raw.flushall()
        self.now = 0
        self.sequence = 0
        self.jobs: dict[str, ModelJob] = {}
        self.counters: Counter[str] = Counter()
        self.turns: Counter[str] = Counter()
        self.idempotency: dict[str, tuple[str, bytes, str, int]] = {}
        """Key → id, body, model, and when it is forgotten."""
        self.claims: list[tuple[str, str, list[str], int]] = []
        """Fence, model, ids, and when the claim is forgotten."""
        self.settlements: list[Ended | Released] = []
        self.ends: dict[str, dict[str, str]] = {}
        """Each record as it was when its job ended."""
        self.run_id_known = False
        self.grace_until = 0

    def live(self, model: str | None = None) -> list[ModelJob]:
        return [
            job
            for job in self.jobs.values()
            if not job.status.is_terminal and (model is None or job.model == model)
        ]

    def ready(self, model: str) -> list[ModelJob]:
        waiting = [job for job in self.live(model) if job.place == "ready"]
        return sorted(waiting, key=lambda job: (LANE_RANK[job.lane], job.sequence))

    def leased(self) -> list[ModelJob]:
        return [job for job in self.live() if job.place == "leased"]

    def finish(self, job: ModelJob, status: Status, error_code: str | None = None) -> None:
        assert not job.status.is_terminal
        job.status, job.error_code, job.leased_until = status, error_code, None
        job.parts.clear()
        job.gone_at = self.now + RESULT_TTL_S
        self.counters[f"{TASK}|{job.model}|{status.value}"] += 1

    def requeue(self, job: ModelJob) -> None:
        job.fence, job.leased_until = None, None
        if job.cancel:
            self.finish(job, Status.CANCELED)
        else:
            job.status = Status.STARTING

    @initialize(first=st.lists(st.tuples(st.sampled_from(Lane), st.booleans()), max_size=8))
    def some_jobs(self, first: list[tuple[Lane, bool]]) -> None:
        for lane, batched in first:
            self.submit(MODELS[0], lane, batched, size=10, deadline=batched, key="", twice=False)

    @rule(
        model=st.sampled_from(MODELS),
        lane=st.sampled_from(Lane),
        batched=st.booleans(),
        size=st.sampled_from((10, 10, 10, 900, 2500)),
        deadline=st.booleans(),
        key=st.sampled_from(("", "", "", "a", "b")),
        twice=st.booleans(),
    )
    def submit(
        self, model: str, lane: Lane, batched: bool, size: int, deadline: bool, key: str, twice: bool
    ) -> None:
        body = b"x" * size
        job = Submission(
            id=str(uuid.uuid4()),
            task=TASK,
            model=model,
            body=body,
            batched=batched,
            items=3 if batched else 1,
            lane=lane,
            idempotency_key=key,
            bell_every=BELL_EVERY,
            expires_in_s=DEADLINE_S if deadline else None,
        )
        depth = len(self.ready(model))
        rung = bool(self.raw.exists(keys.RUNG + model))
        expected, expected_id = self._expected_verdict(job, key, model, body, batched)
        answer = self.runner.run(self.async_store.submit(job))
        assert (answer.verdict, answer.id) == (expected, expected_id)
        if expected is not Verdict.ACCEPTED:
            assert not answer.bell
            assert not self.raw.exists(keys.IN + job.id)
            return
        self.sequence += 1
        deadline_at = self.now + DEADLINE_S if deadline else None
        self.jobs[job.id] = ModelJob(job.id, model, lane, self.sequence, body, batched, deadline_at)
        if key:
            what = f"{model}/{batched}"
            self.idempotency[key] = (job.id, body, what, self.now + IDEMPOTENCY_TTL_S)
        if (depth + 1) % BELL_EVERY == 0 or (depth == 0 and not rung):
            assert answer.bell
        elif depth:
            assert not answer.bell
        if twice:
            # The reply was lost, and the client library sent the very same again.
            again = self.runner.run(self.async_store.submit(job))
            assert (again.verdict, again.id) == (Verdict.ACCEPTED, job.id)

    def _expected_verdict(
        self, job: Submission, key: str, model: str, body: bytes, batched: bool
    ) -> tuple[Verdict, str]:
        if key in self.idempotency and self.idempotency[key][3] > self.now:
            seen_id, seen_body, what, _ = self.idempotency[key]
            same = (seen_body, what) == (body, f"{model}/{batched}")
            return (Verdict.REPLAYED if same else Verdict.CONFLICT), seen_id
        if len(self.ready(model)) >= MAX_DEPTH:
            return Verdict.QUEUE_FULL, job.id
        if sum(len(each.body) for each in self.live()) + len(body) > MAX_BYTES:
            return Verdict.BYTES_FULL, job.id
        return Verdict.ACCEPTED, job.id

    @precondition(lambda self: self.jobs)
    @rule(pick=st.integers(0, 10**6))
    def submit_late_replay(self, pick: int) -> None:
        """A duplicate of a submission that arrives whenever it likes, its record still there."""
        job = list(self.jobs.values())[pick % len(self.jobs)]
        again = Submission(id=job.id, task=TASK, model=job.model, body=job.body, batched=job.batched)
        answer = self.runner.run(self.async_store.submit(again))
        assert (answer.verdict, answer.id) == (Verdict.ACCEPTED, job.id)

    @rule(
        model=st.sampled_from(MODELS),
        count=st.sampled_from((1, 2, 3, 8, 16)),
        max_bytes=st.sampled_from((100, 2000, 10**9)),
    )
    def claim(self, model: str, count: int, max_bytes: int) -> None:
        fence = uuid.uuid4().hex
        expected = self._claimed(model, count, max_bytes)
        claims = self.store.claim(model, fence, "node", count, max_bytes)
        assert [job.id for job in claims.jobs] == [job.id for job in expected]
        for job in expected:
            job.status, job.fence, job.leased_until = Status.RUNNING, fence, self.now + LEASE_S
            job.started = True
            job.deliveries += 1
        assert [job.deliveries for job in claims.jobs] == [job.deliveries for job in expected]
        assert [job.suspect for job in claims.jobs] == [job.suspect for job in expected]
        assert claims.remaining == len(self.ready(model))
        assert self.store.inputs(claims.jobs) == [job.body for job in expected]
        if expected:
            self.claims.append((fence, model, [job.id for job in expected], self.now + CLAIM_TTL_S))

    def _claimed(self, model: str, count: int, max_bytes: int) -> list[ModelJob]:
        taken: list[ModelJob] = []
        size = 0
        for job in self._candidates(model, count):
            if job.deadline is not None and job.deadline <= self.now and not job.started:
                self.finish(job, Status.FAILED, "expired")
            elif job.deliveries >= MAX_DELIVERIES:
                self.finish(job, Status.FAILED, "delivery_limit")
            elif taken and (job.suspect or size + len(job.body) > max_bytes):
                break
            else:
                size += len(job.body)
                taken.append(job)
                if job.suspect:
                    break
        return taken

    def _candidates(self, model: str, count: int) -> list[ModelJob]:
        """The rule of the lanes: in order, with one place in eight kept for each of the lower two."""
        interactive, normal, bulk = (
            [job for job in self.ready(model) if job.lane is lane][:count] for lane in LANE_RANK
        )
        for_normal = for_bulk = count // 8
        if not for_normal and len(interactive) + len(normal) + len(bulk) > count:
            self.turns[model] += 1
            turn = self.turns[model] % 8
            for_normal, for_bulk = int(turn == 4), int(turn == 0)
        for_normal, for_bulk = min(for_normal, len(normal)), min(for_bulk, len(bulk))
        first = interactive[: count - for_normal - for_bulk]
        second = normal[: count - len(first) - for_bulk]
        return [*first, *second, *bulk[: count - len(first) - len(second)]]

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 10**6))
    def replay_claim(self, pick: int) -> None:
        remembered = [claim for claim in self.claims if claim[3] > self.now]
        if not remembered:
            return
        fence, model, ids, _ = remembered[pick % len(remembered)]
        claims = self.store.claim(model, fence, "node", 16, 10**9)
        held = [job_id for job_id in ids if self.holds(job_id, fence)]
        assert [job.id for job in claims.jobs] == held
        assert [job.deliveries for job in claims.jobs] == [self.jobs[job_id].deliveries for job_id in held]

    def holds(self, job_id: str, fence: str) -> bool:
        job = self.jobs.get(job_id)
        return job is not None and job.place == "leased" and job.fence == fence

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 10**6), wrong=st.booleans())
    def beat(self, pick: int, wrong: bool) -> None:
        fence, _, ids, _ = self.claims[pick % len(self.claims)]
        if wrong:
            fence = "stranger"
        answer = self.store.beat([(job_id, fence) for job_id in ids])
        held = {job_id for job_id in ids if self.holds(job_id, fence)}
        assert answer.lost == set(ids) - held
        assert answer.cancel == {job_id for job_id in held if self.jobs[job_id].cancel}
        for job_id in held:
            self.jobs[job_id].leased_until = self.now + LEASE_S
        if held:
            # What the claim took is known for as long as some of it is held.
            index = pick % len(self.claims)
            self.claims[index] = (*self.claims[index][:3], self.now + CLAIM_TTL_S)

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 10**6), how=OUTCOMES, wrong=st.booleans(), item=st.integers(0, 2))
    def settle(self, pick: int, how: list[str], wrong: bool, item: int) -> None:
        """By whoever ever claimed something, whether it still holds it or not."""
        fence, _, ids, _ = self.claims[pick % len(self.claims)]
        self.settle_all(ids, "stranger" if wrong else fence, how, item)

    @rule(model=st.sampled_from(MODELS), count=st.integers(1, 4), how=OUTCOMES, item=st.integers(0, 2))
    def claim_and_settle(self, model: str, count: int, how: list[str], item: int) -> None:
        known = len(self.claims)
        self.claim(model, count, 10**9)
        if len(self.claims) > known:
            fence, _, ids, _ = self.claims[-1]
            self.settle_all(ids, fence, how, item)

    def settle_all(self, ids: list[str], fence: str, how: list[str], item: int) -> None:
        outcomes = [
            outcome_of(job_id, fence, kind, item if self.is_batched(job_id) else 0)
            for job_id, kind in zip(ids, how, strict=False)
        ]
        self.check_settle(outcomes)
        self.settlements = [*self.settlements, *outcomes][-30:]

    @precondition(lambda self: self.settlements)
    @rule(pick=st.integers(0, 10**6))
    def replay_settle(self, pick: int) -> None:
        self.check_settle([self.settlements[pick % len(self.settlements)]])

    @precondition(lambda self: self.live())
    @rule(pick=st.integers(0, 10**6), times=st.integers(1, 3))
    def crash_alone(self, pick: int, times: int) -> None:
        """A process dies with one job alone in it, again and again."""
        job = self.live()[pick % len(self.live())]
        for _ in range(times):
            if job.place == "ready" and job is self.ready(job.model)[0]:
                self.claim(job.model, 1, 10**9)
            if job.place == "leased":
                assert job.fence is not None
                self.check_settle([Released(job.id, job.fence, Return.CRASHED, 0)])

    def is_batched(self, job_id: str) -> bool:
        return job_id in self.jobs and self.jobs[job_id].batched

    def check_settle(self, outcomes: list[Ended | Released]) -> None:
        expected = [self.settled(outcome) for outcome in outcomes]
        assert self.store.settle(outcomes) == expected

    def settled(self, outcome: Ended | Released) -> Settlement:
        job = self.jobs.get(outcome.id)
        if job is None or job.fence != outcome.fence:
            return Settlement.REFUSED
        if job.status.is_terminal:
            return Settlement.OK
        if job.place != "leased":
            return Settlement.REFUSED
        if isinstance(outcome, Ended):
            self.finish(job, outcome.status, (outcome.error or {}).get("code"))
        elif outcome.why is Return.RELEASED:
            job.deliveries -= 1
            self.requeue(job)
        elif outcome.why is Return.SUSPECT:
            job.suspect = True
            self.requeue(job)
        else:
            self.crashed(job, outcome.item)
        return Settlement.OK

    def crashed(self, job: ModelJob, item: int) -> None:
        job.suspect = True
        job.crashes[item] += 1
        if job.crashes[item] < MAX_CRASHES:
            self.requeue(job)
        elif job.batched:
            job.parts.add(item)
            job.suspect = False
            # Its deaths, alone and the one in company before, are the item's.
            job.deliveries = max(0, job.deliveries - MAX_CRASHES - 1)
            self.requeue(job)
        else:
            self.finish(job, Status.FAILED, "worker_crashed")

    @precondition(lambda self: any(job.batched for job in self.jobs.values()))
    @rule(pick=st.integers(0, 10**6), index=st.integers(0, 2))
    def save_parts(self, pick: int, index: int) -> None:
        batched = [job for job in self.jobs.values() if job.batched]
        job = batched[pick % len(batched)]
        self.store.save_parts(job.id, {index: "{}"})
        if not job.status.is_terminal:
            job.parts.add(index)
            assert set(self.store.parts(job.id)) == job.parts

    @precondition(lambda self: self.jobs)
    @rule(pick=st.integers(0, 10**6))
    def cancel(self, pick: int) -> None:
        job = list(self.jobs.values())[pick % len(self.jobs)]
        place, status = job.place, job.status.value
        if place == "ready":
            self.finish(job, Status.CANCELED)
        elif place == "leased":
            job.cancel = True
        expected = {"ready": "canceled", "leased": "requested", "ended": status}[place]
        assert self.runner.run(self.async_store.cancel(job.id)) == expected
        assert self.runner.run(self.async_store.cancel("unknown")) == "missing"

    @rule()
    def reap(self) -> None:
        silent = [model for model in MODELS if not self.raw.exists(keys.RUNG + model)]
        if not self.run_id_known:
            self.run_id_known, self.grace_until = True, self.now + LEASE_S
        returned = expired = 0
        if self.now >= self.grace_until:
            for job in self.leased():
                assert job.leased_until is not None
                if job.leased_until <= self.now:
                    self.requeue(job)
                    returned += 1
        for job in self.live():
            if job.deadline is not None and job.deadline <= self.now and not job.started:
                self.finish(job, Status.FAILED, "expired")
                expired += 1
        answer = self.store.reap()
        assert (answer.returned, answer.expired) == (returned, expired)
        waiting = {model for model in MODELS if self.ready(model)}
        assert waiting & set(silent) <= set(answer.bells) <= waiting

    @rule(steps=st.integers(1, 5))
    def time_passes(self, steps: int) -> None:
        self.now += steps * TIME_STEP_S
        self.raw.eval(keys.LUA_TABLE + PASS_TIME, 0, str(steps * TIME_STEP_S * 1000))
        for job in list(self.jobs.values()):
            if job.gone_at is not None and job.gone_at <= self.now:
                del self.jobs[job.id]
                self.ends.pop(job.id, None)

    @rule()
    def server_restarts(self) -> None:
        """As the scripts see it: another run id than the one that was seen last, and no script loaded."""
        self.raw.script_flush()
        if self.run_id_known:
            self.raw.hset(keys.REAPER, "run_id", "the server before")
        self.run_id_known = False

    @rule()
    def scripts_are_forgotten(self) -> None:
        self.raw.script_flush()

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        seen = self.snapshot()
        self.check_places(seen)
        self.check_records(seen)
        self.check_totals(seen)
        self.check_keys(seen)

    def snapshot(self) -> Snapshot:
        rows = json.loads(self.raw.eval(SNAPSHOT, 0))
        return Snapshot(
            {key: left for key, left, _ in rows}, {key: content for key, _, content in rows if content}
        )

    def check_places(self, seen: Snapshot) -> None:
        for model in MODELS:
            assert seen.members(keys.READY + model) == [job.id for job in self.ready(model)]
            if self.ready(model):
                # Else no reaper would ever ring for it.
                assert model in seen.members(keys.MODELS)
        assert set(seen.members(keys.LEASES)) == {job.id for job in self.leased()}
        dated = {job.id for job in self.live() if job.deadline is not None and not job.started}
        assert set(seen.members(keys.DEADLINES)) == dated

    def check_records(self, seen: Snapshot) -> None:
        for job in self.jobs.values():
            record = seen.hash(keys.JOB + job.id)
            assert record["status"] == job.status.value
            assert int(record["deliveries"]) == job.deliveries
            assert record.get("fence") == job.fence
            assert record.get("ends", "0") == ("1" if job.status.is_terminal else "0")
            assert ("finished_ms" in record) == job.status.is_terminal
            if job.status.is_terminal:
                code = json.loads(record["error"])["code"] if "error" in record else None
                assert code == job.error_code
                ended = {name: value for name, value in record.items() if name != "deadline_ms"}
                assert self.ends.setdefault(job.id, ended) == ended

    def check_totals(self, seen: Snapshot) -> None:
        totals = seen.hash(keys.TOTALS)
        assert int(totals.get("jobs", 0)) == len(self.live())
        assert int(totals.get("bytes", 0)) == sum(len(job.body) for job in self.live())
        assert {name: int(value) for name, value in seen.hash(keys.COUNTERS).items()} == self.counters

    def check_keys(self, seen: Snapshot) -> None:
        live = {job.id for job in self.live()}
        for job_id in live:
            assert seen.lives.get(keys.JOB + job_id) == seen.lives.get(keys.IN + job_id) == -1
        forever = {
            *(keys.LEASES, keys.DEADLINES, keys.MODELS, keys.TURNS, keys.SEQUENCE, keys.TOTALS),
            *(keys.COUNTERS, keys.REAPER),
            *(keys.READY + model for model in MODELS),
            *(prefix + job_id for job_id in live for prefix in (keys.JOB, keys.IN, keys.PARTS)),
        }
        for key, left in seen.lives.items():
            assert left >= 0 or key in forever, f"{key} would stay for ever"


def outcome_of(job_id: str, fence: str, kind: str, item: int) -> Ended | Released:
    if kind in ("released", "suspect", "crashed"):
        return Released(job_id, fence, Return(kind), item)
    if kind == "failed":
        return Ended(job_id, fence, Status.FAILED, error={"code": "inference_failed"})
    if kind == "canceled":
        return Ended(job_id, fence, Status.CANCELED)
    return Ended(job_id, fence, Status.COMPLETE, LARGE if kind == "large" else b'{"ok":true}')


@pytest.fixture
def machine(settings: Settings, raw_redis: redis.Redis) -> Iterator[type[Machine]]:
    limits = settings.model_copy(
        update={
            "lease_s": float(LEASE_S),
            "result_ttl_s": RESULT_TTL_S,
            "idempotency_ttl_s": IDEMPOTENCY_TTL_S,
            "max_queue_depth": MAX_DEPTH,
            "max_queued_bytes": MAX_BYTES,
            "max_deliveries": MAX_DELIVERIES,
        }
    )
    with asyncio.Runner() as runner:

        class Connected(Machine):
            store = JobStore(limits)
            async_store = AsyncJobStore(limits)
            raw = raw_redis

        Connected.runner = runner
        yield Connected
        Connected.store.close()
        runner.run(Connected.async_store.close())


@pytest.mark.timeout(300)
def test_the_scripts_do_what_a_model_in_plain_python_does(machine: type[Machine]) -> None:
    print(f"HYPOTHESIS_SEED={SEED}")
    run_state_machine_as_test(
        seed(SEED)(machine),
        settings=hypothesis_settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
