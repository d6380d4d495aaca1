"""Waiting for the ends of jobs, a thousand at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from itertools import islice
from typing import Any

from modelmill.client.backfill.bulk_api import COLLECT_IDS, Backoff, BulkApi, NoAnswerError
from modelmill.client.backfill.rows import Row

WAIT_S = 10
ASK_AGAIN_S = 0.2
"""After this time, a waiting request is canceled if there are many more jobs than it asks for."""
PAUSE_S = 0.02
"""The pause after a request that found few ends, so that the next one finds more."""


class Collector:
    """Jobs whose ends are collected together.

    Args:
        api: The server.
        backoff: The pauses that all requests share.
        on_end: Called with the row and the document of each job that has ended or that the server does not
            know.
    """

    def __init__(
        self, api: BulkApi, backoff: Backoff, on_end: Callable[[Row, Mapping[str, Any]], None]
    ) -> None:
        self._api, self._backoff, self._on_end = api, backoff, on_end
        self._jobs: dict[str, Row] = {}
        self._changed = asyncio.Event()
        self._asked = 0
        self._ask_task: asyncio.Task[int] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._is_answered = False
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job_id: str, row: Row) -> None:
        """One more job to wait for."""
        self._jobs[job_id] = row
        self._changed.set()
        # The jobs that the request asks for may be slow while others have ended: ask again, for all jobs.
        if self._again is None and self._asked and len(self) >= 1.25 * self._asked:
            self._again = asyncio.get_running_loop().call_later(ASK_AGAIN_S, self._give_up_asking)

    def _give_up_asking(self) -> None:
        if self._ask_task is not None and not self._is_answered:
            self._ask_task.cancel()

    def close(self) -> None:
        """No further job will be added."""
        self._is_closed = True
        self._changed.set()

    async def run(self) -> None:
        """Collects until it is closed and no job is left."""
        while self._jobs or not self._is_closed:
            self._changed.clear()
            if not self._jobs:
                await self._changed.wait()
                continue
            self._asked = asked = len(self)
            self._is_answered = False
            self._ask_task = asyncio.create_task(self._ask())
            try:
                await asyncio.wait({self._ask_task})
            finally:
                self._ask_task.cancel()
                self._forget_request()
            if not self._ask_task.cancelled() and self._ask_task.result() < asked / 4:
                await asyncio.sleep(PAUSE_S)

    def _forget_request(self) -> None:
        self._asked = 0
        if self._again is not None:
            self._again.cancel()
            self._again = None

    async def _ask(self) -> int:
        """Asks once. Returns how many jobs had ended."""
        found = 0
        try:
            async with aclosing(
                self._api.collect(list(islice(self._jobs, COLLECT_IDS)), WAIT_S)
            ) as documents:
                async for document in documents:
                    self._is_answered = True
                    if document.get("status") in ("starting", "running"):
                        continue
                    row = self._jobs.pop(str(document.get("id")), None)
                    if row is not None:
                        found += 1
                        self._on_end(row, document)
        except NoAnswerError as error:
            self._is_answered = True
            await self._backoff.pause(error)
        return found
