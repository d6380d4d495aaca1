"""Which models there are, which tasks they answer, and which nodes serve them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from modelmill.catalogue import Catalogue, unknown_name
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.store import ApiStore, NodeRecord
from modelmill_tasks.contract import Task

logger = logging.getLogger(__name__)


class Directory:
    """The models of the catalogue, and those that live workers announce.

    A worker may serve models of its own models file. The API knows them while that worker lives.
    """

    REFRESH_S = 1.0

    def __init__(self, catalogue: Catalogue, store: ApiStore) -> None:
        self._catalogue = catalogue
        self._store = store
        self._nodes: list[NodeRecord] = []
        self._models = {name: entry.tasks for name, entry in catalogue.items()}
        self._seen_at = -self.REFRESH_S

    async def models(self) -> Mapping[str, tuple[str, ...]]:
        """Tasks by model name. The announcements of workers are at most a second old."""
        await self._refresh()
        return self._models

    async def recent_nodes_serving(self, model: str) -> list[NodeRecord]:
        """Nodes that serve ``model``, from a list that is at most a second old."""
        await self._refresh()
        return [node for node in self._nodes if model in node.models]

    async def nodes_serving_now(self, model: str) -> list[NodeRecord]:
        """Live nodes that serve ``model``, read from the store at each call."""
        return [node for node in await self._store.nodes() if model in node.models]

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
        """Refuses an unknown model, and one that does not answer ``task``.

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
        """The task as this model answers it: with the further config keys of the model's entry."""
        return task.with_config_keys(self._catalogue[model].config_keys) if model in self._catalogue else task

    def max_batch(self, model: str) -> int | None:
        """The model's batch size, if its entry sets one."""
        return self._catalogue[model].max_batch if model in self._catalogue else None

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
            # If both know a model, the catalogue wins over the announcement.
            self._models = announced | {name: entry.tasks for name, entry in self._catalogue.items()}
