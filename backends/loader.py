"""A loaded model: its weights, shared by the runners of all its tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from backends.contract import LoadContext, Runner
from backends.device import current_device
from backends.registry import find_runner
from modelmill.catalogue import Catalogue
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import get_settings
from tasks.contract import TaskInput, TaskOutput
from tasks.registry import find_task

logger = logging.getLogger(__name__)


class LoadedModel:
    """A model in memory. Weights that several tasks share are read once.

    Not thread-safe: load and ``close`` from one thread; ``preprocess`` of its runners may run in many.
    """

    def __init__(self, context: LoadContext) -> None:
        self.context = context
        self._weights: dict[Callable[..., Any], Any] = {}
        self._runners: dict[str, Runner[Any, Any]] = {}

    @property
    def name(self) -> str:
        return self.context.entry.name

    def load(self) -> LoadedModel:
        """Loads the weights for every task of the entry.

        Raises:
            ModelmillError: ``model_load_failed`` with the reason.
        """
        try:
            for task in self.context.entry.tasks:
                self.runner(task)
        except ModelmillError:
            self.close()
            raise
        except Exception as error:
            logger.exception("model %s failed to load", self.name)
            self.close()
            raise ModelmillError(
                ErrorCode.MODEL_LOAD_FAILED, f"Model {self.name}: {type(error).__name__}: {error}"
            ) from error
        return self

    def runner(self, task: str) -> Runner[Any, Any]:
        """The runner of this model for ``task``, loading its weights if no other task has."""
        if task not in self._runners:
            runner_class = find_runner(self.context.entry, task)
            # A bound classmethod is a new object each time; the function below it tells whose it is.
            load = runner_class.load.__func__  # type: ignore[attr-defined]
            if load not in self._weights:
                self._weights[load] = runner_class.load(self.context)
            self._runners[task] = runner_class(self._weights[load], self.context)
        return self._runners[task]

    def answer(self, task: str, *items: Mapping[str, Any]) -> list[TaskOutput]:
        """Answers items in one batch, without a server; each is the JSON form of the task's input.

        Raises:
            ModelmillError: an item is wrong.
        """
        contract = find_task(task).accepting(self.context.entry.config_keys)
        runner = self.runner(task)
        inputs: list[TaskInput] = [contract.input.model_validate(item) for item in items]
        prepared = [runner.preprocess(item) for item in inputs]
        results: list[TaskOutput | None] = [None] * len(inputs)
        groups: dict[Any, list[int]] = {}
        for index, item in enumerate(inputs):
            groups.setdefault(runner.group_key(item), []).append(index)
        for members in groups.values():
            raw = runner.forward([prepared[index] for index in members])
            for index, value in zip(members, raw, strict=True):
                results[index] = runner.postprocess(prepared[index], value)
        return [result for result in results if result is not None]

    def close(self) -> None:
        """Frees the weights."""
        for weights in self._weights.values():
            if callable(close := getattr(weights, "close", None)):
                close()
        self._weights.clear()
        self._runners.clear()


def load(name: str, catalogue: Catalogue | None = None) -> LoadedModel:
    """Loads a catalogued model in this process, on the device that the environment names."""
    settings = get_settings()
    catalogue = catalogue or Catalogue.load(settings.models_file)
    context = LoadContext(catalogue.find(name), current_device(), catalogue, settings)
    return LoadedModel(context).load()
