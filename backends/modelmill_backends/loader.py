"""A loaded model: its weights, which the runners of all its tasks share."""

from __future__ import annotations

import logging
import warnings
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
from modelmill_tasks.item_warnings import InputWarning, ItemWarning, collecting
from modelmill_tasks.registry import find_task

logger = logging.getLogger(__name__)


class LoadedModel:
    """A model in memory. Weights that several tasks share are read once.

    Not thread-safe: load and close it from one thread. ``preprocess`` of its runners may run in many.
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
        """Names of the tasks that it answers."""
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
        """The runner of this model for ``task``. Loads the weights, unless another task has loaded them."""
        if task not in self._runners:
            runner_class = find_runner(self.context.entry, task)
            # A bound classmethod is a new object each time. Its function is the same for all that inherit it.
            load = runner_class.load.__func__  # type: ignore[attr-defined]
            if load not in self._weights:
                self._weights[load] = runner_class.load(self.context)
            self._runners[task] = runner_class(self._weights[load], self.context)
        return self._runners[task]

    def run(self, task: str | None = None, /, **inputs: Any) -> Any:
        """Answers in this process, without a server.

        The inputs are the task's fields. A list in a batched field holds one value per item; the items run in
        batches of ``max_batch``. Every other field is one value for all items, or a list with one per item.
        Images may be data URLs, base64, bytes, paths of files (``pathlib.Path``) or Pillow images; sounds
        may also be ``(samples, sampling rate)``.

        Args:
            task: One of the model's tasks; you may leave it out if the model answers only one.
            **inputs: The task's fields, such as ``text="…"`` and ``config={"normalize": True}``.

        Returns:
            The task's output, or a list of outputs if a batched field was a list.

        Warns:
            InputWarning: something of an input was lost, although the model answered: a text was cut, …

        Raises:
            ModelmillError: an input is wrong, or the model failed on it. The first bad item ends the call,
                and the message says which item it is. No item is left out.
        """
        contract = self._contract(task)
        if item_count(contract, inputs) is None:
            outputs, losses = self._answers(contract, [inputs])
            _raise(losses, first=None)
            return outputs[0]
        answers: list[TaskOutput] = []
        waiting = items(contract, inputs)
        # One batch of media at a time: memory may not hold all of them.
        while part := list(islice(waiting, self._max_batch)):
            outputs, losses = self._answers(contract, part, first=len(answers))
            _raise(losses, first=len(answers))
            answers += outputs
        return answers

    __call__ = run

    def answer(self, task: str, *items: Mapping[str, Any]) -> list[TaskOutput]:
        """Answers items in one batch, without a server; each item is the JSON form of the task's input.

        Warns:
            InputWarning: something of an input was lost, although the model answered.

        Raises:
            ModelmillError: an item is wrong.
        """
        contract = find_task(task).with_config_keys(self.context.entry.config_keys)
        runner = self.runner(task)
        inputs: list[TaskInput] = [contract.input.model_validate(item) for item in items]
        losses: list[list[ItemWarning]] = [[] for _ in inputs]
        prepared = [_prepared(runner, item, found) for item, found in zip(inputs, losses, strict=True)]
        keys = [runner.group_key(item) for item in inputs]
        outputs = _forwarded(runner, prepared, keys, inf, losses)
        _raise(losses, first=0 if len(items) > 1 else None)
        return outputs

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
                f"Model {self.name} answers several tasks; name one as the first argument: "
                f"{', '.join(self.tasks)}.",
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
    ) -> tuple[list[TaskOutput], list[list[ItemWarning]]]:
        """The outputs of the items, from as few passes as possible, and what each of them lost.

        ``first`` is the first item's index.
        """

        def place(index: int) -> str:
            return "" if first is None else f"Item {first + index}: "

        inputs: list[TaskInput] = []
        for index, item in enumerate(part):
            with _told(place(index)):
                inputs.append(parse(contract, item))
        runner = self._opened(contract.name)
        prepared: list[Prepared[Any]] = []
        losses: list[list[ItemWarning]] = [[] for _ in inputs]
        keys: list[Hashable] = []
        for index, checked in enumerate(inputs):
            with _told(place(index)):
                keys.append(runner.group_key(checked))
                prepared.append(_prepared(runner, checked, losses[index]))
        with _told():
            return _forwarded(runner, prepared, keys, self._max_batch, losses), losses


@contextmanager
def _told(item: str = "") -> Iterator[None]:
    """Names the item in errors of the block; unexpected errors become ``inference_failed``."""
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


def _prepared(runner: Runner[Any, Any], item: TaskInput, losses: list[ItemWarning]) -> Prepared[Any]:
    with collecting(losses):
        return runner.preprocess(item)


def _forwarded(
    runner: Runner[Any, Any],
    prepared: Sequence[Prepared[Any]],
    keys: Sequence[Hashable],
    max_cost: float,
    losses: Sequence[list[ItemWarning]],
) -> list[TaskOutput]:
    """The outputs in order. Items with equal keys share passes of at most ``max_cost``.

    What an item loses is added to its ``losses``.
    """
    results: dict[int, TaskOutput] = {}
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    for group in groups.values():
        for members in _within_cost(group, prepared, max_cost):
            raw = runner.forward([prepared[index] for index in members])
            for index, value in zip(members, raw, strict=True):
                with collecting(losses[index]):
                    results[index] = runner.postprocess(prepared[index], value)
    return [results[index] for index in range(len(prepared))]


def _raise(losses: Sequence[list[ItemWarning]], first: int | None) -> None:
    """Raises a Python warning for each loss, where the user called the model.

    ``first`` is the index of the first item; None if the call had only one.
    """
    for index, found in enumerate(losses):
        for loss in found:
            item = None if first is None else first + index
            warnings.warn(InputWarning(item, loss), stacklevel=3)


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
        name: A name or alias in the catalogue; or a hub id ``owner/name``, a local folder or a GGUF file.
            The tasks of a model outside the catalogue are not known in advance: the weights of each task
            load at its first call.
        catalogue: Where to look up names; by default the built-in catalogue and the models file of the
            settings.
        backend: The runtime of a model outside the catalogue, if its files do not show it.
        options: Options of the backend, such as ``{"dtype": "float16"}``; they override the catalogue's.
        revision: Commit of the hub repository.
        device: ``cpu`` or ``cuda``; by default the value of ``MODELMILL_DEVICE``, or the CPU.
        lazy: Load each task's weights at its first call, also for a model in the catalogue.

    Raises:
        ModelmillError: ``model_not_found`` with similar names, or ``model_load_failed`` with the reason.
        ConfigError: the models file is wrong.
    """
    settings = get_settings()
    catalogue = catalogue or Catalogue.load(settings.models_file)
    entry, is_catalogued = _found(name, catalogue, backend, revision)
    if options:
        entry = entry.model_copy(update={"options": entry.options | dict(options)})
    on = current_device() if device is None else replace(current_device(), kind=device)
    model = LoadedModel(LoadContext(entry, on, catalogue, settings))
    # The author of an entry has listed tasks that work; for a folder all tasks of the backend are tried.
    return model.load() if is_catalogued and not lazy else model


def pull(name: str, catalogue: Catalogue | None = None) -> list[Path]:
    """Fetches the files that a load of the model needs into the hub's local cache.

    If the model's options name other models, their files are fetched too.

    Returns:
        The folders; empty if nothing comes from a hub.

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
        # This machine may have no GPU: the files may be for another machine, so the device is the CPU here.
        context = LoadContext(entry, replace(current_device(), kind="cpu"), catalogue, settings)
        # A model outside the catalogue may not answer all tasks, so it is fetched for the first one.
        for runner in [find_runner(entry, task) for task in entry.tasks[: None if is_catalogued else 1]]:
            folders += fetch(entry, partial(runner.load, context))
    return list(dict.fromkeys(folders))


def list_models(
    task: str | None = None, limit: int | None = None, catalogue: Catalogue | None = None
) -> list[str]:
    """Names of the models in the catalogue, in its order.

    Args:
        task: Only models that answer this task.
        limit: The largest number of names.
        catalogue: By default the built-in catalogue and the models file of the settings.

    Raises:
        ModelmillError: ``task_not_found`` with similar names.
    """
    catalogue = catalogue or Catalogue.load(get_settings().models_file)
    names = list(catalogue) if task is None else catalogue.serving(find_task(task).name)
    return names[:limit]


def _found(
    name: str | Path, catalogue: Catalogue, backend: str | None, revision: str | None
) -> tuple[ModelEntry, bool]:
    """The entry, and whether it is in the catalogue."""
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
            f"backend: model {entry.name} has the backend {entry.backend}; leave backend out.",
        )
    if revision is not None:
        if entry.source is None or entry.source.hub is None:
            raise ModelmillError(
                ErrorCode.INVALID_INPUT, f"revision: model {entry.name} does not come from a hub."
            )
        source = entry.source.model_copy(update={"revision": revision})
        entry = entry.model_copy(update={"source": source})
    return entry, True
