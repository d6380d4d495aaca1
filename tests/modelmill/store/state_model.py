"""The expected behaviour of the scripts, in plain Python. ``test_state_machine.py`` compares the
scripts with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelmill.states import Status
from modelmill.store import OPENING, Limits, Outcome, Released, Return, Settlement, Submission, Verdict
from modelmill.store.keys import HOOK_TTL_MS
from modelmill.store.records import LANE_RANK
from modelmill.store.scripts import ORPHAN_TTL_S

TASK, MODELS, CALLERS = "a-task", ("one", "two"), ("anonymous", "somebody")
LEASE_S, RESULT_TTL_S, IDEMPOTENCY_TTL_S, DEADLINE_S = 1000, 5000, 2500, 700
SHORT_TTL_S, LONG_TTL_S, FILE_TTL_S, RATE_INTERVAL_S, HOOK_TTL_S = 1000, 8000, 1700, 700, HOOK_TTL_MS // 1000
CLAIM_TTL_S = 6 * LEASE_S
TIME_STEP_S = 300
"""Time passes in multiples of this. If a multiple equals a duration above, the little real time that a
step takes changes nothing: the model and the store stay on the same side of it."""
MAX_DEPTH, MAX_BYTES, MAX_DELIVERIES, BELL_EVERY, MAX_CRASHES = 12, 6000, 5, 4, 3
KEEP_BYTES, MAX_JOBS, BURST, FILE_BYTES = 500, 3, 2, 100
QUOTA = Limits(max_jobs=MAX_JOBS)
RATE = Limits(jobs_per_minute=60 / RATE_INTERVAL_S, burst=BURST)


@dataclass
class ModelJob:
    """The expected state of one accepted job."""

    submission: Submission
    sequence: int
    deadline: int | None
    """On the clock of the model."""
    status: Status = Status.STARTING
    fence: str | None = None
    leased_until: int | None = None
    started: bool = False
    given_back: bool = False
    """By a worker that had not run it."""
    deliveries: int = 0
    suspect: bool = False
    cancel: bool = False
    gone: bool = False
    """Deleted while it ran: its end removes it."""
    crashes: Counter[int] = field(default_factory=Counter)
    parts: set[int] = field(default_factory=set)
    events: list[str] = field(default_factory=list)
    error_code: str | None = None
    gone_at: int | None = None
    """When the record of an ended job expires."""
    input_until: int | None = None
    """When the request of an ended job expires; None if it is not kept."""
    large_under: str | None = None
    """The fence of its result, if the result has a key of its own."""

    @property
    def id(self) -> str:
        return self.submission.id

    @property
    def model(self) -> str:
        return self.submission.model

    @property
    def body(self) -> bytes:
        return self.submission.body

    @property
    def batched(self) -> bool:
        return self.submission.batched

    @property
    def place(self) -> str:
        if self.status.is_terminal:
            return "ended"
        return "ready" if self.leased_until is None else "leased"

    @property
    def ttl_s(self) -> int:
        asked = self.submission.result_ttl_s
        return RESULT_TTL_S if asked is None else int(asked)


@dataclass
class ModelKey:
    """An idempotency key. It lives as long as its job waits, runs or can be read, and not shorter than a
    minimum."""

    id: str
    body: bytes
    what: str
    """The model, and whether the job is batched."""
    at_least: int
    until: int | None = None
    """When it expires; None until its job has ended."""


@dataclass
class ModelFile:
    """An uploaded file."""

    owner: str
    until: int
    blob: str | None
    refs: int = 0


@dataclass(frozen=True)
class Answer:
    """The expected answer to a submission."""

    verdict: Verdict
    id: str
    remaining: int | None = None
    retry_after_s: float | None = None


class StoreModel:
    """The whole of the store."""

    def __init__(self) -> None:
        self.now = 0
        self.sequence = 0
        self.jobs: dict[str, ModelJob] = {}
        """All jobs with a record, also those that can no longer be read."""
        self.counters: Counter[str] = Counter()
        self.turns: Counter[str] = Counter()
        self.orphans: dict[str, int] = {}
        """Payloads of late duplicates. They live longer than a record with a short time to live. Id →
        until."""
        self.idempotency: dict[tuple[str, str], ModelKey] = {}
        """By caller and key."""
        self.index: dict[str, list[str]] = {caller: [] for caller in CALLERS}
        """Each caller's jobs, oldest first."""
        self.expiring: dict[tuple[str, str], int] = {}
        """Id and caller of ended jobs, and when they leave the index."""
        self.due: dict[str, int] = {}
        """When each caller's next job is due at its rate."""
        self.files: dict[str, ModelFile] = {}
        self.trash: dict[str, int] = {}
        self.outbox: set[str] = set()
        self.hooked: dict[str, int] = {}
        """Ended jobs with a webhook, and when the webhook expires."""
        self.logged: list[str] = []
        """Lines of the store's log: the ends that no worker reported."""

    def live(self, model: str | None = None, caller: str | None = None) -> list[ModelJob]:
        return [
            job
            for job in self.jobs.values()
            if not job.status.is_terminal
            and model in (None, job.model)
            and caller in (None, job.submission.caller)
        ]

    def ready(self, model: str) -> list[ModelJob]:
        waiting = [job for job in self.live(model) if job.place == "ready"]
        return sorted(waiting, key=lambda job: (LANE_RANK[job.submission.lane], job.sequence))

    def leased(self) -> list[ModelJob]:
        return [job for job in self.live() if job.place == "leased"]

    def submitted(self, job: Submission) -> Answer:
        answer = self._answer(job)
        if answer.verdict is Verdict.ACCEPTED:
            self._accept(job)
        elif job.blob is not None:
            self.trash[job.blob] = self.now
        return answer

    def _answer(self, job: Submission) -> Answer:
        seen = self.idempotency.get((job.caller, job.idempotency_key))
        if seen is not None and seen.id in self.jobs and not self.jobs[seen.id].gone:
            same = (seen.body, seen.what) == (job.body, f"{job.model}/{job.batched}")
            return Answer(Verdict.REPLAYED if same else Verdict.CONFLICT, seen.id)
        most = job.limits.max_jobs
        if most is not None and len(self.live(caller=job.caller)) >= most:
            return Answer(Verdict.QUOTA_FULL, job.id)
        remaining = None
        if job.limits.jobs_per_minute is not None:
            spare = BURST * RATE_INTERVAL_S - (self._next_due(job.caller) - self.now)
            if spare < 0:
                return Answer(Verdict.RATE_LIMITED, job.id, 0, -spare)
            remaining = spare // RATE_INTERVAL_S
        unused = None if remaining is None else remaining + 1
        if len(self.ready(job.model)) >= MAX_DEPTH:
            return Answer(Verdict.QUEUE_FULL, job.id, unused)
        if sum(len(each.body) for each in self.live()) + len(job.body) > MAX_BYTES:
            return Answer(Verdict.BYTES_FULL, job.id, unused)
        for file in job.files.values():
            if file not in self.files or self.files[file].owner != job.caller:
                return Answer(Verdict.FILE_MISSING, file, unused)
        return Answer(Verdict.ACCEPTED, job.id, remaining)

    def _next_due(self, caller: str) -> int:
        return max(self.due.get(caller, 0), self.now) + RATE_INTERVAL_S

    def _accept(self, job: Submission) -> None:
        self.sequence += 1
        deadline = None if job.expires_in_s is None else self.now + int(job.expires_in_s)
        self.jobs[job.id] = ModelJob(job, self.sequence, deadline)
        self.index[job.caller].append(job.id)
        if job.limits.jobs_per_minute is not None:
            self.due[job.caller] = self._next_due(job.caller)
        for file in job.files.values():
            self.files[file].refs += 1
        if job.idempotency_key:
            what = f"{job.model}/{job.batched}"
            at_least = self.now + IDEMPOTENCY_TTL_S
            self.idempotency[job.caller, job.idempotency_key] = ModelKey(job.id, job.body, what, at_least)

    def submitted_again(self, job: ModelJob) -> None:
        """The payload is written first, so it exists again for a while."""
        if job.status.is_terminal and job.input_until is None and job.submission.blob is None:
            job.input_until = self.now + ORPHAN_TTL_S

    def hook(self, job: ModelJob, event: str) -> None:
        if event in job.submission.webhook_events:
            self.outbox.add(f"{job.id} {event}")

    def progressed(self, job: ModelJob) -> None:
        job.events.append("progress")
        self.hook(job, "progress")

    def finish(self, job: ModelJob, status: Status, error_code: str | None = None) -> None:
        assert not job.status.is_terminal
        asked = job.submission
        job.status, job.error_code, job.leased_until = status, error_code, None
        job.parts.clear()
        job.gone_at = self.now + job.ttl_s
        keep = status is not Status.COMPLETE or len(job.body) <= KEEP_BYTES
        if asked.blob is not None:
            self.trash[asked.blob] = job.gone_at if keep else self.now
        elif keep:
            job.input_until = job.gone_at
        for file in asked.files.values():
            self.files[file].refs -= 1
        self.expiring[job.id, asked.caller] = job.gone_at
        key = self.idempotency.get((asked.caller, asked.idempotency_key))
        if key is not None and key.id == job.id:
            key.until = max(job.gone_at, key.at_least)
        self.counters[f"{TASK}|{job.model}|{status.value}"] += 1
        if job.gone:
            self.forget(job)
        elif asked.webhook is not None:
            self.hooked[job.id] = self.now + HOOK_TTL_S
            self.hook(job, "ended")

    def close(self, job: ModelJob, status: Status, code: str | None = None) -> None:
        """An end that no worker reports."""
        why = "" if code is None else f" code={code}"
        self.logged.append(
            f"job_end id={job.id} task={TASK} model={job.model} status={status.value}{why} "
            f"deliveries={job.deliveries}"
        )
        self.finish(job, status, code)

    def forget(self, job: ModelJob) -> None:
        """Removes an ended job with all that belongs to it."""
        asked = job.submission
        del self.jobs[job.id]
        del self.expiring[job.id, asked.caller]
        if job.id in self.index[asked.caller]:
            self.index[asked.caller].remove(job.id)
        key = self.idempotency.get((asked.caller, asked.idempotency_key))
        if key is not None and key.id == job.id:
            del self.idempotency[asked.caller, asked.idempotency_key]
        if asked.blob is not None:
            self.trash[asked.blob] = self.now
        self.outbox -= {f"{job.id} {event}" for event in ("started", "progress", "ended")}
        self.hooked.pop(job.id, None)

    def deleted(self, job_id: str) -> str:
        job = self.jobs.get(job_id)
        if job is None or job.gone:
            return "missing"
        if job.place == "ended":
            self.forget(job)
            return "deleted"
        job.cancel = job.gone = True
        self.index[job.submission.caller].remove(job.id)
        if job.place == "leased":
            return "deleting"
        self.close(job, Status.CANCELED)
        return "deleted"

    def canceled(self, job: ModelJob) -> str:
        if job.place == "ready":
            self.close(job, Status.CANCELED)
            return "canceled"
        if job.place == "leased":
            job.cancel = True
            return "requested"
        return job.status.value

    def requeue(self, job: ModelJob) -> None:
        job.fence, job.leased_until = None, None
        if job.cancel:
            self.close(job, Status.CANCELED)
        else:
            job.status = Status.STARTING
            job.events.append("log")

    def claimed(self, model: str, fence: str, count: int, max_bytes: int) -> list[ModelJob]:
        taken = self._taken(model, count, max_bytes)
        for job in taken:
            job.status, job.fence, job.leased_until = Status.RUNNING, fence, self.now + LEASE_S
            if job.started or job.given_back:
                job.events.append("log")
            if not job.started:
                self.hook(job, "started")
            job.started = True
            job.deliveries += 1
        return taken

    def _taken(self, model: str, count: int, max_bytes: int) -> list[ModelJob]:
        taken: list[ModelJob] = []
        size = 0
        for job in self._candidates(model, count):
            if job.deadline is not None and job.deadline <= self.now and not job.started:
                self.close(job, Status.FAILED, "expired")
            elif job.deliveries >= MAX_DELIVERIES:
                self.close(job, Status.FAILED, "delivery_limit")
            elif taken and (job.suspect or size + len(job.body) > max_bytes):
                break
            else:
                size += len(job.body)
                taken.append(job)
                if job.suspect:
                    break
        return taken

    def _candidates(self, model: str, count: int) -> list[ModelJob]:
        """The rule of the lanes: in order, with one place in eight kept for each of the lower two.

        If eight claims find several lanes, one of them begins with a normal job and one with a bulk job.
        """
        interactive, normal, bulk = (
            [job for job in self.ready(model) if job.submission.lane is lane][:count] for lane in LANE_RANK
        )
        for_normal = for_bulk = count // 8
        begins: list[ModelJob] = []
        if sum(map(bool, (interactive, normal, bulk))) > 1:
            self.turns[model] += 1
            if self.turns[model] % 8 == 4:
                begins, for_normal = normal[:1], max(1, for_normal)
            elif self.turns[model] % 8 == 0:
                begins, for_bulk = bulk[:1], max(1, for_bulk)
        for_normal, for_bulk = min(for_normal, len(normal)), min(for_bulk, len(bulk))
        first = interactive[: count - for_normal - for_bulk]
        second = normal[: count - len(first) - for_bulk]
        in_order = [*first, *second, *bulk[: count - len(first) - len(second)]]
        return [*begins, *(job for job in in_order if job not in begins)]

    def holds(self, job_id: str, fence: str) -> bool:
        job = self.jobs.get(job_id)
        return job is not None and job.place == "leased" and job.fence == fence

    def settled(self, outcome: Outcome | Released, large: bool) -> Settlement:
        job = self.jobs.get(outcome.id)
        if job is None or job.fence != outcome.fence:
            return Settlement.REFUSED
        if job.status.is_terminal:
            return Settlement.OK
        if job.place != "leased":
            return Settlement.REFUSED
        if isinstance(outcome, Outcome):
            job.large_under = outcome.fence if large else None
            self.finish(job, outcome.status, (outcome.error or {}).get("code"))
        elif outcome.why is Return.RELEASED:
            job.deliveries -= 1
            if job.deliveries == 0 and not job.parts:
                job.started, job.given_back = False, True
            self.requeue(job)
        elif outcome.why is Return.SUSPECT:
            job.suspect = True
            self.requeue(job)
        else:
            self._crashed(job, outcome.item)
        return Settlement.OK

    def _crashed(self, job: ModelJob, item: int) -> None:
        job.suspect = True
        job.crashes[item] += 1
        if job.crashes[item] < MAX_CRASHES:
            self.requeue(job)
        elif job.batched and item != OPENING:
            job.parts.add(item)
            job.suspect = False
            # The crashes count for the item: those alone, and the one before together with others.
            job.deliveries = max(1, job.deliveries - MAX_CRASHES - 1)
            self.requeue(job)
        else:
            self.close(job, Status.FAILED, "worker_crashed")

    def reaped(self, with_leases: bool) -> tuple[int, int]:
        """Leases returned, and jobs expired."""
        overdue = [job for job in self.leased() if with_leases and (job.leased_until or 0) <= self.now]
        for job in overdue:
            self.requeue(job)
        late = [
            job
            for job in self.live()
            if job.deadline is not None and job.deadline <= self.now and not job.started
        ]
        for job in late:
            self.close(job, Status.FAILED, "expired")
        for job_id, caller in [member for member, at in self.expiring.items() if at <= self.now]:
            del self.expiring[job_id, caller]
            if job_id in self.index[caller]:
                self.index[caller].remove(job_id)
        return len(overdue), len(late)

    def swept(self) -> set[str]:
        """Removes files whose time is over, unless jobs refer to them. Returns the blobs that may go."""
        for name, file in list(self.files.items()):
            if file.until > self.now:
                continue
            if file.refs:
                file.until = self.now + 60
                continue
            del self.files[name]
            if file.blob is not None:
                self.trash[file.blob] = self.now
        return {name for name, at in self.trash.items() if at <= self.now}

    def pass_time(self, seconds: int) -> Sequence[str]:
        """The ids of jobs whose records expired."""
        self.now += seconds
        over = [job.id for job in self.jobs.values() if job.gone_at is not None and job.gone_at <= self.now]
        for job_id in over:
            late = self.jobs.pop(job_id).input_until
            if late is not None and late > self.now:
                self.orphans[job_id] = late
        self.orphans = {job_id: until for job_id, until in self.orphans.items() if until > self.now}
        for job in self.jobs.values():
            if job.input_until is not None and job.input_until <= self.now:
                job.input_until = None
        for name, key in list(self.idempotency.items()):
            if key.until is not None and key.until <= self.now:
                del self.idempotency[name]
        return over
