"""The contract of a runner. Read this file first.

A runner is one backend's way to answer one task. ``load`` reads the weights once; all runners of the model
that inherit the same ``load`` share them. Then, for each batch, ``preprocess`` prepares one item at a time
in threads, ``forward`` runs the whole batch on the device and nothing else runs there, and ``postprocess``
makes the output of one item at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.settings import Settings
from modelmill_backends.device import Device
from modelmill_backends.progress import ProgressSink
from modelmill_tasks.contract import TaskInput, TaskOutput
from modelmill_tasks.registry import find_task

Weights = TypeVar("Weights")
Item = TypeVar("Item", bound=TaskInput)


@dataclass(frozen=True, slots=True)
class LoadContext:
    """The data that ``load`` may need."""

    entry: ModelEntry
    device: Device
    catalogue: Catalogue
    """For models that use other models: their options name them."""
    settings: Settings

    @property
    def cache_dir(self) -> Path:
        """The model's own folder for files that can be made again, such as an ONNX export."""
        return self.settings.cache_dir / self.entry.name


@dataclass(frozen=True, slots=True)
class Prepared(Generic[Item]):
    """One item, ready for ``forward``."""

    item: Item
    data: Any
    """The input of the runner's ``forward``: an array, token ids, …"""
    cost: float = 1.0
    """Share of a batch's capacity, in the runner's own unit (images, tokens, seconds of audio)."""


class Runner(ABC, Generic[Item, Weights]):
    """One backend's way to answer one task, on weights that are loaded.

    Subclasses set ``backend`` and ``task``. They are discovered automatically
    (``modelmill_backends.registry``). Heavy imports stay inside the methods.

    If an item cannot be answered, raise ``ModelmillError``: only this item fails, with that code and
    message. After any other exception the item fails with ``inference_failed``. If an item can be answered
    but something of it is lost, call ``modelmill_tasks.item_warnings.warn``.
    """

    backend: ClassVar[str]
    """Name of the runtime, as in ``backend`` of a catalogue entry."""
    task: ClassVar[str]
    """Name of the task that it answers."""
    name: ClassVar[str] = "default"
    """Distinguishes several runners of one backend for one task; an entry's ``runner`` chooses one."""

    def __init__(self, weights: Weights, context: LoadContext) -> None:
        self.weights = weights
        self.entry = context.entry
        self.device = context.device
        self.progress = ProgressSink()
        """Receives the progress of a ``forward`` with many steps, and says which items are canceled."""

    @classmethod
    @abstractmethod
    def load(cls, context: LoadContext) -> Weights:
        """Reads the weights. Runners of one model that inherit the same ``load`` share the result.

        If the result has a ``close()``, it is called when the model is unloaded.

        Raises:
            ModelmillError: ``model_load_failed`` with a reason that an operator can act on.
        """

    def group_key(self, item: Item) -> Hashable:
        """Items with equal keys may share a ``forward``. By default: equal non-batched fields."""
        return find_task(self.task).group_key(item)

    @abstractmethod
    def preprocess(self, item: Item) -> Prepared[Item]:
        """Decodes and checks one item. Runs in several threads at once; does not use the device."""

    @abstractmethod
    def forward(self, batch: Sequence[Prepared[Item]]) -> Sequence[Any]:
        """Runs a batch of items with equal group keys on the device; one raw result per item, in order."""

    @abstractmethod
    def postprocess(self, prepared: Prepared[Item], raw: Any) -> TaskOutput:
        """Makes the task's output from one raw result."""
