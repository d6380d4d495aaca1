"""schemathesis: to every request, the API answers as its OpenAPI document says.

``make fuzz`` sends more, to every task's routes.
"""

from __future__ import annotations

import os
import random
import unittest
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ClaimRequest, Outcome, WorkerStore
from modelmill_tasks.shared.examples import CAT
from tests.support.servers import ApiServer

load_all_checks()

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
TASKS = "zero-shot-image-classification|text-embedding|chat-completion|object-detection|custom"
"""Tasks whose own routes are tried in each run of the tests; the others are made the same way."""
PIXELS = b"data:image/png;base64,iVBORw0KGgo="
NOOP = "/api/tasks/zero-shot-image-classification/noop/jobs"
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@schemathesis.serializer("application/x-ndjson")
def lines(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


class Target:
    """A server with some jobs in every state that a job can be in without a worker."""

    def __init__(self, settings: Settings) -> None:
        self._server = ApiServer(settings)
        self.url = self._server.url
        with httpx.Client(base_url=self.url) as client:
            self.models: dict[str, list[str]] = {
                task: client.get(f"/api/tasks/{task}/models").json()
                for task in client.get("/api/tasks").json()
            }
            body = {"image": CAT, "classes": ["cat", "dog"]}
            self.ended: list[str] = [client.post(NOOP, json=body).json()["id"] for _ in range(2)]
            custom = f"/api/tasks/custom/{self.models['custom'][0]}/jobs"
            self.ended.append(client.post(custom, json={"input": "x"}).json()["id"])
            self._end(settings)
            self.waiting: list[str] = [client.post(NOOP, json=body).json()["id"] for _ in range(100)]
            several = {"image": [CAT], "classes": ["cat", "dog"]}
            path = NOOP.replace("noop", "batched/noop")
            self.batched: list[str] = [client.post(path, json=several).json()["id"] for _ in range(20)]
            self.file: str = client.post("/api/files", files={"file": PIXELS}).json()["id"]
        self._chance = random.Random(1)

    def _end(self, settings: Settings) -> None:
        store = WorkerStore(settings)
        first, second = store.claim(ClaimRequest("noop", uuid.uuid4().hex, "node", 2, 10**9)).jobs
        (third,) = store.claim(
            ClaimRequest(self.models["custom"][0], uuid.uuid4().hex, "node", 1, 10**9)
        ).jobs
        error = {"code": "inference_failed", "message": "No.", "retryable": False}
        store.settle(
            [
                Outcome(first.id, first.fence, Status.COMPLETE, result=b'{"probabilities":[0.5,0.5]}'),
                Outcome(second.id, second.fence, Status.FAILED, error=error),
                Outcome(third.id, third.fence, Status.COMPLETE, result=b'{"output":{"image":"%b"}}' % PIXELS),
            ]
        )
        store.close()

    def close(self) -> None:
        self._server.close()

    def aim(self, case: schemathesis.Case[Any]) -> None:
        """Mostly names of things that exist: generated names lead to a 404 and no further."""
        chance, parts = self._chance, case.path.split("/")
        if chance.random() < 0.8:
            task = parts[3] if case.path.startswith("/api/tasks/") else "zero-shot-image-classification"
            existing = {
                "id": self._id(parts, case.method),
                "task": "zero-shot-image-classification",
                "model": self.models.get(task, ["noop"])[0],
                "path": chance.choice(["probabilities", "probabilities/1", "output", "output/image"]),
            }
            case.path_parameters.update(
                {name: value for name, value in existing.items() if name in case.path_parameters}
            )
            body: Any = case.body
            if isinstance(body, dict) and isinstance(body.get("ids"), list):
                body["ids"] = [*body["ids"], *self.ended, *chance.sample(self.waiting, 3)]
        if any("wait" in str(value) for value in case.headers.values()):
            case.headers["Prefer"] = "wait=0"

    def _id(self, parts: list[str], method: str) -> str:
        if "files" in parts:
            return self.file
        # Without a worker, waiting jobs and their events never end; and deleted jobs are gone.
        if parts[-1] == "events" or "result" in parts:
            return self._chance.choice(self.ended)
        if "batched" in parts:
            return self._chance.choice(self.batched)
        return self._chance.choice(self.ended + self.waiting if method == "GET" else self.waiting)


@pytest.fixture
def target(settings: Settings) -> Iterator[Target]:
    server = Target(settings.model_copy(update={"webhook_hosts": "example.invalid"}))
    yield server
    server.close()


@pytest.mark.timeout(180 + 360 * EXAMPLES)
def test_answers_are_as_documented(target: Target) -> None:
    document: Any = schemathesis.openapi.from_url(f"{target.url}/openapi.json")
    if not EXAMPLES:
        document = document.exclude(path_regex=rf"^/api/tasks/(?!({TASKS})/|\{{)")
    failures = []
    count = 0
    for operation in (found.ok() for found in document.get_all_operations()):
        count += 1
        try:
            try_out(target, operation)
        except (Exception, FailureGroup) as failure:
            failures.append(f"{operation.label}: {reasons(failure)}")
    assert count > 40
    assert not failures, "\n\n".join(failures)


def reasons(failure: BaseException) -> str:
    parts = failure.exceptions if isinstance(failure, BaseExceptionGroup) else [failure]
    return "\n".join(f"{type(part).__name__}: {part!s:.800}" for part in parts) + f"\n{failure!s:.1500}"


def try_out(target: Target, operation: Any) -> None:
    right, wrong = (operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)

    @given(data=strategies.data())
    @settings(
        max_examples=EXAMPLES or 8,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def attempt(data: strategies.DataObject) -> None:
        # Some operations take no parameters, so they cannot be called wrongly.
        case = data.draw(right)
        if data.draw(strategies.booleans()):
            with suppress(unittest.SkipTest):
                case = data.draw(wrong)
        target.aim(case)
        response = case.call(timeout=30)
        # A 500 is an error of the API. A 503 is documented: no worker lives.
        assert response.status_code < 500 or response.status_code == 503, response.text
        case.validate_response(response, checks=CHECKS)

    attempt()
