"""FastAPI, Celery and Redis, put together as their own documentation shows.

API: ``uvicorn celery_app:app``. Worker: ``celery -A celery_app:queue worker``.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from celery.signals import worker_process_init
from fastapi import FastAPI

from benchmarks import work

REDIS_URL = os.environ["PEER_REDIS_URL"]
RESULT_TTL_S = 3600

queue = Celery("peer", broker=REDIS_URL, backend=REDIS_URL)
queue.conf.update(result_expires=RESULT_TTL_S, broker_connection_retry_on_startup=True)
app = FastAPI()


@worker_process_init.connect
def load_model(**_: Any) -> None:
    work.served()


@queue.task
def classify(job: dict[str, Any]) -> list[float]:
    return work.served()([job])[0]


@app.post("/jobs", status_code=202)
def create_job(job: work.Job) -> dict[str, str]:
    return {"id": classify.delay(job.model_dump()).id}


@app.get("/jobs/{job_id}")
def read_job(job_id: str) -> dict[str, Any]:
    result = AsyncResult(job_id, app=queue)
    status = result.status
    return {"status": status, "result": result.result if status == "SUCCESS" else None}
