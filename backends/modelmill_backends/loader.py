"""A loaded model: its weights, shared by the runners of all its tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import get_settings
from modelmill_backends.adhoc import HUB_ID, folder_entry, hub_entry, is_path
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.device import current_device
from modelmill_backends.inputs import item_count, items, parse
from modelmill_backends.registry import find_runner
from modelmill_backends.source import fetch
from modelmill_tasks.contract import Task, TaskInput, TaskOutput
from modelmill_tasks.registry import find_task

logger = logging.getLogger(__name__)


class LoadedModel:
    """A model in memory. Weights that several tasks share are read once.

    Not thread-safe: load and ``close`` from one thread; ``preprocess`` of its runners may run in many.
    """

    def __init__(self, context: LoadContext) -> None:
        self.context = context
        self._weights: dict[Callable[..., Any], Any] = {}
        self._runners: dict[str, Runner[Any, Any]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        return self.context.entry.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may be asked."""
        return self.context.entry.tasks

    def load(self) -> LoadedModel:
        """Loads the weights for every task of the entry.

        Raises:
            ModelmillError: ``model_load_failed`` with the reason.
        """
        try:
            for task in self.tasks:
                self._opened(task)
        except ModelmillError:
            self.close()
            raise
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

    def run(self, task: str | None = None, /, **inputs: Any) -> Any:
        """Answers in this process, without a server.

        The inputs are the task's fields. A list in a batched field asks for as many items, which run in
        batches of ``max_batch``; every other field is one value for all items, or a list of one an item.
        Images may be data URLs, base64, bytes, paths of files (``pathlib.Path``) or images of Pillow; sounds
        also ``(samples, sampling rate)``.

        Args:
            task: Which of the model's tasks; may be left out where it answers one only.
            **inputs: The task's fields, such as ``text="…"`` and ``config={"normalize": True}``.

        Returns:
            The task's output, or a list of outputs if a batched field was a list.

        Raises:
            ModelmillError: an input is wrong, or the model failed on it. Of many items the first bad one
                ends the call, and the message tells which it is; none is left out.
        """
        contract = self._contract(task)
        if item_count(contract, inputs) is None:
            return self._answers(contract, [inputs])[0]
        outputs: list[TaskOutput] = []
        waiting = items(contract, inputs)
        # Media of a part at a time: there may be more of them than memory holds.
        while part := list(islice(waiting, self._max_batch)):
            outputs += self._answers(contract, part, first=len(outputs))
        return outputs

    __call__ = run

    def answer(self, task: str, *items: Mapping[str, Any]) -> list[TaskOutput]:
        """Answers items in one batch, without a server; each is the JSON form of the task's input.

        Raises:
            ModelmillError: an item is wrong.
        """
        contract = find_task(task).with_config_keys(self.context.entry.config_keys)
        runner = self.runner(task)
        inputs: list[TaskInput] = [contract.input.model_validate(item) for item in items]
        prepared = [runner.preprocess(item) for item in inputs]
        return _forwarded(runner, prepared, [runner.group_key(item) for item in inputs], inf)

    def close(self) -> None:
        """Frees the weights."""
        for weights in self._weights.values():
            if callable(close := getattr(weights, "close", None)):
                close()
        self._weights.clear()
        self._runners.clear()

    @property
    def _max_batch(self) -> int:
        return self.context.entry.max_batch or self.context.settings.max_batch

    def _contract(self, name: str | None) -> Task:
        if name is None and len(self.tasks) == 1:
            name = self.tasks[0]
        if name is None:
            raise ModelmillError(
                ErrorCode.INVALID_INPUT,
                f"Model {self.name} answers several tasks; name one first: {', '.join(self.tasks)}.",
            )
        task = find_task(name)
        if name not in self.tasks:
            raise ModelmillError(
                ErrorCode.TASK_NOT_SUPPORTED,
                f"Model {self.name} does not answer {name}; it answers {', '.join(self.tasks)}.",
            )
        return task.with_config_keys(self.context.entry.config_keys)

    def _opened(self, task: str) -> Runner[Any, Any]:
        try:
            return self.runner(task)
        except ModelmillError:
            raise
        except Exception as error:
            logger.exception("model %s failed to load", self.name)
            raise ModelmillError(
                ErrorCode.MODEL_LOAD_FAILED, f"Model {self.name}: {type(error).__name__}: {error}"
            ) from error

    def _answers(
        self, contract: Task, part: Sequence[Mapping[str, Any]], first: int | None = None
    ) -> list[TaskOutput]:
        """Items in as few passes as their kinds and costs allow; ``first`` is the index of the first."""

        def place(index: int) -> str:
            return "" if first is None else f"Item {first + index}: "

        inputs: list[TaskInput] = []
        for index, item in enumerate(part):
            with _told(place(index)):
                inputs.append(parse(contract, item))
        runner = self._opened(contract.name)
        prepared: list[Prepared[Any]] = []
        keys: list[Hashable] = []
        for index, checked in enumerate(inputs):
            with _told(place(index)):
                keys.append(runner.group_key(checked))
                prepared.append(runner.preprocess(checked))
        with _told():
            return _forwarded(runner, prepared, keys, self._max_batch)


@contextmanager
def _told(item: str = "") -> Iterator[None]:
    """Errors in the block tell whose they are; those that nobody expected become ``inference_failed``."""
    try:
        yield
    except ModelmillError as error:
        if not item:
            raise
        raise ModelmillError(error.code, f"{item}{error.message}", fields=error.fields) from None
    except Exception as error:
        raise ModelmillError(
            ErrorCode.INFERENCE_FAILED,
            f"{item}The model failed on this input: {type(error).__name__}: {error}",
        ) from error


def _forwarded(
    runner: Runner[Any, Any], prepared: Sequence[Prepared[Any]], keys: Sequence[Hashable], max_cost: float
) -> list[TaskOutput]:
    """The outputs in order: a forward pass for each group of equal keys, within ``max_cost``."""
    results: dict[int, TaskOutput] = {}
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    for group in groups.values():
        for members in _within_cost(group, prepared, max_cost):
            raw = runner.forward([prepared[index] for index in members])
            for index, value in zip(members, raw, strict=True):
                results[index] = runner.postprocess(prepared[index], value)
    return [results[index] for index in range(len(prepared))]


def _within_cost(
    group: Sequence[int], prepared: Sequence[Prepared[Any]], max_cost: float
) -> Iterator[list[int]]:
    batch: list[int] = []
    cost = 0.0
    for index in group:
        if batch and cost + prepared[index].cost > max_cost:
            yield batch
            batch, cost = [], 0.0
        batch.append(index)
        cost += prepared[index].cost
    yield batch


def load(
    name: str | Path,
    catalogue: Catalogue | None = None,
    *,
    backend: str | None = None,
    options: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    lazy: bool = False,
) -> LoadedModel:
    """Loads a model in this process.

    Args:
        name: A catalogued name or alias; or another model's hub id, ``owner/name``, a local folder or a
            GGUF file. Of those, the tasks are not known beforehand: each loads when it is first asked.
        catalogue: Where names are looked up; by default the built-in one and the models file of the settings.
        backend: The runtime of a model that is not catalogued, where its files do not tell.
        options: Options of the backend, such as ``{"dtype": "float16"}``, over those of the catalogue.
        revision: Commit of the hub repository.
        device: ``cpu`` or ``cuda``; what ``MODELMILL_DEVICE`` says when not given, and else the CPU.
        lazy: Load each task's weights when it is first asked, also those of a catalogued model.

    Raises:
        ModelmillError: ``model_not_found``, naming near ones, or ``model_load_failed`` with the reason.
        ConfigError: the models file is wrong.
    """
    settings = get_settings()
    catalogue = catalogue or Catalogue.load(settings.models_file)
    entry, is_catalogued = _found(name, catalogue, backend, revision)
    if options:
        entry = entry.model_copy(update={"options": entry.options | dict(options)})
    on = current_device() if device is None else replace(current_device(), kind=device)
    model = LoadedModel(LoadContext(entry, on, catalogue, settings))
    # The tasks of an entry are what somebody vouches for; those of a folder are all that might be.
    return model.load() if is_catalogued and not lazy else model


def pull(name: str, catalogue: Catalogue | None = None) -> list[Path]:
    """Fetches the files of a model into the hub's local cache, those that loading it will ask for.

    Of a model made of others, which its options name, theirs as well.

    Returns:
        Their folders; none where nothing comes from a hub.

    Raises:
        ModelmillError: ``model_not_found``, or ``model_load_failed`` with the reason.
    """
    settings = get_settings()
    catalogue = catalogue or Catalogue.load(settings.models_file)
    entry, is_catalogued = _found(name, catalogue, None, None)
    folders: list[Path] = []
    for part in entry.options.values():
        if isinstance(part, str) and part in catalogue and part != entry.name:
            folders += pull(part, catalogue)
    if entry.source is not None and entry.source.hub is not None:
        # Whatever machine this is: the files are for one that has what the model needs.
        context = LoadContext(entry, replace(current_device(), kind="cpu"), catalogue, settings)
        # What is not catalogued is fetched for the first task that there is: it may not have the others.
        for runner in [find_runner(entry, task) for task in entry.tasks[: None if is_catalogued else 1]]:
            folders += fetch(entry, partial(runner.load, context))
    return list(dict.fromkeys(folders))


def list_models(
    task: str | None = None, limit: int | None = None, catalogue: Catalogue | None = None
) -> list[str]:
    """Names of the catalogued models, in the catalogue's order.

    Args:
        task: Only those that answer this task.
        limit: At most so many.
        catalogue: The built-in one and the models file of the settings when not given.

    Raises:
        ModelmillError: ``task_not_found``, naming near ones.
    """
    catalogue = catalogue or Catalogue.load(get_settings().models_file)
    names = list(catalogue) if task is None else catalogue.serving(find_task(task).name)
    return names[:limit]


def _found(
    name: str | Path, catalogue: Catalogue, backend: str | None, revision: str | None
) -> tuple[ModelEntry, bool]:
    """The entry, and whether it is catalogued."""
    if isinstance(name, Path):
        return folder_entry(name, backend), False
    try:
        entry = catalogue.resolve(name)
    except ModelmillError:
        if is_path(name):
            return folder_entry(Path(name), backend), False
        if HUB_ID.fullmatch(name):
            return hub_entry(name, backend, revision), False
        raise
    if backend not in (None, entry.backend):
        raise ModelmillError(
            ErrorCode.INVALID_INPUT,
            f"backend: that of model {entry.name} is {entry.backend}, and not a choice.",
        )
    if revision is not None:
        if entry.source is None or entry.source.hub is None:
            raise ModelmillError(
                ErrorCode.INVALID_INPUT, f"revision: model {entry.name} does not come from a hub."
            )
        source = entry.source.model_copy(update={"revision": revision})
        entry = entry.model_copy(update={"source": source})
    return entry, True
