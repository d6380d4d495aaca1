"""The contract of a runner, short enough to read standing.

A runner is one backend's way to answer one task. Its life: ``load`` reads weights once, for all
runners of the model that share that ``load``; then, for each batch, ``preprocess`` runs an item at a
time in threads, ``forward`` runs a whole batch alone on the device, ``postprocess`` an item at a time.
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
    """What ``load`` may want to know."""

    entry: ModelEntry
    device: Device
    catalogue: Catalogue
    """For models made of other models, which their options name."""
    settings: Settings

    @property
    def cache_dir(self) -> Path:
        """A folder of the model's own for files that can be made again, such as an ONNX export."""
        return self.settings.cache_dir / self.entry.name


@dataclass(frozen=True, slots=True)
class Prepared(Generic[Item]):
    """One item, ready for ``forward``."""

    item: Item
    data: Any
    """Whatever the runner's ``forward`` takes: an array, token ids, …"""
    cost: float = 1.0
    """Share of a batch's capacity, in the runner's own unit (images, tokens, seconds of audio)."""


class Runner(ABC, Generic[Item, Weights]):
    """One backend's way to answer one task, on weights that are loaded.

    Subclasses set ``backend`` and ``task`` and are found by existing (``modelmill_backends.registry``). Heavy
    imports stay inside the methods.

    Raise ``ModelmillError`` for an item that cannot be answered: it fails alone, with that code and
    message. Any other exception fails the item as ``inference_failed``.
    """

    backend: ClassVar[str]
    """The runtime, as a catalogue entry's ``backend`` names it."""
    task: ClassVar[str]
    """Name of the task it answers."""
    name: ClassVar[str] = "default"
    """Which of the backend's runners for this task; an entry's ``runner`` chooses."""

    def __init__(self, weights: Weights, context: LoadContext) -> None:
        self.weights = weights
        self.entry = context.entry
        self.device = context.device
        self.progress = ProgressSink()
        """For a ``forward`` of many steps: whom to tell how far it is, and to ask whether to go on."""

    @classmethod
    @abstractmethod
    def load(cls, context: LoadContext) -> Weights:
        """Reads the weights. Runners of one model that inherit the same ``load`` share the result.

        What it returns may have a ``close()``, called when the model is unloaded.

        Raises:
            ModelmillError: ``model_load_failed`` with a reason that an operator can act on.
        """

    def group_key(self, item: Item) -> Hashable:
        """Items with equal keys may share a ``forward``. By default: equal non-batched fields."""
        return find_task(self.task).group_key(item)

    @abstractmethod
    def preprocess(self, item: Item) -> Prepared[Item]:
        """Decodes and checks one item. Runs in threads, several at a time; touches no device."""

    @abstractmethod
    def forward(self, batch: Sequence[Prepared[Item]]) -> Sequence[Any]:
        """Runs a batch of items with equal group keys on the device; one raw result an item, in order."""

    @abstractmethod
    def postprocess(self, prepared: Prepared[Item], raw: Any) -> TaskOutput:
        """Makes the task's output of one raw result."""
