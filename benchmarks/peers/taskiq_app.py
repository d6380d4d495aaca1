"""FastAPI, Taskiq and Redis, put together as their own documentation shows.

The stream broker is the one that acknowledges, so no job is lost with its worker.

API: ``uvicorn taskiq_app:app``. Worker: ``taskiq worker taskiq_app:broker``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks import work

REDIS_URL = os.environ["PEER_REDIS_URL"]
RESULT_TTL_S = 3600

results: RedisAsyncResultBackend[list[float]] = RedisAsyncResultBackend(
    redis_url=REDIS_URL, result_ex_time=RESULT_TTL_S
)
broker = RedisStreamBroker(url=REDIS_URL).with_result_backend(results)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
def load_model(_: TaskiqState) -> None:
    work.served()


@broker.task
def classify(job: dict[str, Any]) -> list[float]:
    return work.served()([job])[0]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    if not broker.is_worker_process:
        await broker.startup()
    yield
    if not broker.is_worker_process:
        await broker.shutdown()


app = FastAPI(lifespan=lifespan)


@app.post("/jobs", status_code=202)
async def create_job(job: work.Job) -> dict[str, str]:
    task = await classify.kiq(job.model_dump())
    return {"id": task.task_id}


@app.get("/jobs/{job_id}")
async def read_job(job_id: str) -> dict[str, Any]:
    if not await results.is_result_ready(job_id):
        return {"status": "PENDING", "result": None}
    outcome = await results.get_result(job_id)
    if outcome.is_err:
        return {"status": "FAILURE", "result": None}
    return {"status": "SUCCESS", "result": outcome.return_value}
