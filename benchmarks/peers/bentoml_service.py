"""A BentoML service with one task, batched: ``bentoml serve bentoml_service:Classifier``."""

from __future__ import annotations

import os
from typing import Any

import bentoml

from benchmarks import work

WORK = os.environ["PEER_WORK"]


@bentoml.service
class Classifier:
    def __init__(self) -> None:
        self.model = work.served()

    @bentoml.task(batchable=True, max_batch_size=work.max_batch(WORK))
    def classify(self, jobs: list[work.Job]) -> list[list[float]]:
        inputs: list[dict[str, Any]] = [job.model_dump() for job in jobs]
        return self.model(inputs)
