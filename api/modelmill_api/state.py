"""What the routes share: settings, job store, bells, and the directory of models."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from modelmill.broker import Bells
from modelmill.catalogue import Catalogue, unknown_name
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.outbound import Guard
from modelmill.settings import Settings
from modelmill.store import ApiStore, JobNews, NodeRecord
from modelmill_api.middleware.metrics import RequestMetrics
from modelmill_tasks.contract import Task

logger = logging.getLogger(__name__)

ORDER_TIMEOUT_S, ORDER_RETRY_S = 5.0, 2.0
"""How long an order to workers may take to be sent, and when to try again if it was not."""


class Directory:
    """Which models there are and what they answer: the catalogue, and what live workers announce.

    A worker may serve models of its own models file; they are known here while it lives.
    """

    REFRESH_S = 1.0

    def __init__(self, catalogue: Catalogue, store: ApiStore) -> None:
        self._catalogue = catalogue
        self._store = store
        self._nodes: list[NodeRecord] = []
        self._models = {name: entry.tasks for name, entry in catalogue.items()}
        self._seen_at = -self.REFRESH_S

    async def models(self) -> Mapping[str, tuple[str, ...]]:
        """Tasks by model name. What workers announce is at most a second old."""
        await self._refresh()
        return self._models

    async def nodes_serving(self, model: str) -> list[NodeRecord]:
        """Nodes that serve ``model``, at most a second old."""
        await self._refresh()
        return [node for node in self._nodes if model in node.models]

    async def _refresh(self) -> None:
        if time.monotonic() - self._seen_at < self.REFRESH_S:
            return
        self._seen_at = time.monotonic()
        try:
            self._nodes = await self._store.nodes()
        except ModelmillError as error:
            logger.warning("the list of workers could not be read: %s", error.message)
        else:
            announced = {
                model: tuple(tasks) for node in self._nodes for model, tasks in node.parent.models.items()
            }
            # The catalogue's word counts where both know a model.
            self._models = announced | {name: entry.tasks for name, entry in self._catalogue.items()}

    async def tasks_of(self, model: str) -> tuple[str, ...]:
        """Names of the tasks that ``model`` answers.

        Raises:
            ModelmillError: ``model_not_found``, naming the nearest.
        """
        models = await self.models()
        if model not in models:
            raise unknown_name(ErrorCode.MODEL_NOT_FOUND, "model", model, models)
        return models[model]

    async def check(self, task: Task, model: str) -> None:
        """Refuses a model that nobody knows, or that does not answer ``task``.

        Raises:
            ModelmillError: ``model_not_found`` or ``task_not_supported``, naming what there is.
        """
        answered = await self.tasks_of(model)
        if task.name not in answered:
            able = [name for name, tasks in (await self.models()).items() if task.name in tasks]
            raise ModelmillError(
                ErrorCode.TASK_NOT_SUPPORTED,
                f"Model {model!r} does not answer {task.name}; it answers {', '.join(answered)}. "
                f"Models for {task.name}: {', '.join(able) or 'none'}.",
            )

    def contract(self, task: Task, model: str) -> Task:
        """The task as this model answers it, with what else its entry lets callers set."""
        return task.with_config_keys(self._catalogue[model].config_keys) if model in self._catalogue else task

    def max_batch(self, model: str) -> int | None:
        """The model's batch size, where its entry sets one."""
        return self._catalogue[model].max_batch if model in self._catalogue else None


@dataclass(frozen=True, slots=True)
class ApiState:
    """One API process's parts."""

    settings: Settings
    store: ApiStore
    bells: Bells
    directory: Directory
    news: JobNews
    requests: RequestMetrics
    guard: Guard | None
    """What media are fetched with by URL; None where no host is allowed."""
    webhook_guard: Guard
    """What webhooks are sent with."""

    async def nodes_serving(self, model: str) -> list[NodeRecord]:
        """Live nodes that serve ``model``."""
        return [node for node in await self.store.nodes() if model in node.models]

    async def order(self, name: str, model: str, nodes: Sequence[NodeRecord]) -> None:
        """Sends ``LOAD`` or ``UNLOAD`` to nodes; a drain that lingers there makes room for it.

        Raises:
            ModelmillError: ``store_unavailable``: not all of them could be told.
        """
        sent: dict[str, asyncio.Future[None]] = {}
        for node in nodes:
            await self.store.send_away(node.name)
            sent[node.name] = asyncio.wrap_future(self.bells.order(name, model, node.name))
        await asyncio.wait(sent.values(), timeout=ORDER_TIMEOUT_S)
        # Those that come too late are taken back: the caller is told that they were not sent.
        missed = [node for node, each in sent.items() if each.cancel() or each.exception()]
        if missed:
            raise ModelmillError(
                ErrorCode.STORE_UNAVAILABLE,
                f"The order could not be sent to {', '.join(missed)}. Try again shortly.",
                retry_after_s=ORDER_RETRY_S,
            )


def state_of(request: Request) -> ApiState:
    """The state of the application that serves ``request``."""
    state: ApiState = request.app.state.modelmill
    return state


async def _depend_on_state(request: Request) -> ApiState:
    # Asynchronous although it awaits nothing: FastAPI gives what is not a thread, for each request.
    return state_of(request)


State = Annotated[ApiState, Depends(_depend_on_state)]
"""The parameter of a FastAPI route that is given the state."""


async def reap_until(stopping: asyncio.Event, state: ApiState) -> None:
    """The API's share of the reaper: also with no worker left, deadlines hold and bells are rung."""
    while not stopping.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), state.settings.reap_s)
            return
        try:
            reaped = await state.store.reap()
        except ModelmillError as error:
            logger.warning("reaping failed: %s", error.message)
            continue
        except Exception:
            logger.exception("reaping failed")
            continue
        for model in reaped.bells:
            state.bells.ring(model)
