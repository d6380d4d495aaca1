"""The checks. Each takes a loaded specimen; if it fails, it raises ``AssertionError`` with a sentence.

If a check does not apply to a specimen, it raises ``SkippedError``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.errors import ModelmillError
from modelmill.settings import Settings, get_settings
from modelmill_backends.conformance.compare import difference
from modelmill_backends.conformance.samples import as_batched, samples_of, truncated
from modelmill_backends.conformance.specimen import Inputs, Specimen
from modelmill_backends.contract import LoadContext, Runner
from modelmill_backends.device import Device, current_device
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.contract import Task
from modelmill_tasks.registry import find_task

BATCH = 16
"""Number of items in the batch that is compared with single calls."""


class SkippedError(Exception):
    """The check does not apply to this specimen; the message says why."""


class LoadedSpecimen:
    """A specimen with its model, the inputs and the answers. Each part is made when it is first used."""

    def __init__(
        self,
        specimen: Specimen,
        folder: Path,
        settings: Settings | None = None,
        device: Device | None = None,
    ) -> None:
        self.specimen = specimen
        self.folder = folder
        self._settings = settings or get_settings()
        self._device = device or current_device()

    @cached_property
    def task(self) -> Task:
        return find_task(self.specimen.task)

    @cached_property
    def entry(self) -> ModelEntry:
        """The catalogue entry, with the specimen's name."""
        entry = self.specimen.build(self.folder)
        return entry.model_copy(update={"name": self.specimen.name, "tasks": (self.specimen.task,)})

    @cached_property
    def model(self) -> LoadedModel:
        catalogue = Catalogue.load(self._settings.models_file)
        context = LoadContext(self.entry, self._device, catalogue, self._settings)
        return LoadedModel(context).load()

    @property
    def runner(self) -> Runner[Any, Any]:
        return self.model.runner(self.specimen.task)

    @cached_property
    def inputs(self) -> Inputs:
        """Sixteen items; if the specimen has fewer, they are repeated."""
        own = self.specimen.inputs
        if own is None:
            return samples_of(self.task, BATCH)
        return [own[index % len(own)] for index in range(BATCH)]

    @cached_property
    def bad_input(self) -> Mapping[str, Any] | None:
        return self.specimen.bad_input or truncated(self.task)

    @cached_property
    def outputs(self) -> list[Any]:
        """The runner's answer to each input alone. Equal inputs are asked once."""
        found: dict[str, Any] = {}
        keys = [json.dumps(item, sort_keys=True) for item in self.inputs]
        for key, item in zip(keys, self.inputs, strict=True):
            if key not in found:
                (found[key],) = self.model.answer(self.specimen.task, item)
        return [found[key] for key in keys]

    @cached_property
    def answers_alone(self) -> list[dict[str, Any]]:
        """``outputs`` after a round trip through JSON."""
        return [self._as_json(output) for output in self.outputs]

    @cached_property
    def answers_in_batch(self) -> list[dict[str, Any]]:
        """The answers to all inputs in one batch, after a round trip through JSON."""
        return [self._as_json(output) for output in self.model.answer(self.specimen.task, *self.inputs)]

    def close(self) -> None:
        if "model" in self.__dict__:
            self.model.close()

    def ask(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one item alone."""
        (output,) = self.model.answer(self.specimen.task, item)
        return self._as_json(output)

    def _as_json(self, output: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(output.model_dump_json())
        return found


def answers_keep_the_contract(loaded: LoadedSpecimen) -> None:
    """Each answer is the task's output, and is the same after a round trip through JSON."""
    for output in loaded.outputs:
        assert isinstance(output, loaded.task.output), f"it gave a {type(output).__name__}"
        again = loaded.task.output.model_validate_json(output.model_dump_json())
        assert again == output, "the answer changes in a round trip through JSON"


def a_batch_is_answered_as_its_items_alone(loaded: LoadedSpecimen) -> None:
    """Sixteen different items get the same answers in one batch as alone."""
    for index, (together, alone) in enumerate(
        zip(loaded.answers_in_batch, loaded.answers_alone, strict=True)
    ):
        said = difference(together, alone, loaded.specimen.tolerance, f"item {index}")
        assert said is None, f"{said} (in a batch of {BATCH}, compared with alone)"


def answers_differ_as_their_items_do(loaded: LoadedSpecimen) -> None:
    """Different inputs do not all get the same answer."""
    if len({json.dumps(item, sort_keys=True) for item in loaded.inputs}) > 1:
        answers = [
            {key: value for key, value in answer.items() if key != "created"}
            for answer in loaded.answers_alone
        ]
        assert len({json.dumps(answer, sort_keys=True) for answer in answers}) > 1, "all answers are equal"


def answers_equal_the_reference(loaded: LoadedSpecimen) -> None:
    """An independent computation with the same weights gives the same answers."""
    if loaded.specimen.reference is None:
        raise SkippedError("the specimen has no reference")
    assert loaded.entry
    items = loaded.inputs[:5]
    expected = loaded.specimen.reference(loaded.folder, items)
    for index, (found, wanted) in enumerate(zip(loaded.answers_alone[:5], expected, strict=True)):
        said = difference(found, wanted, loaded.specimen.tolerance, f"item {index}")
        assert said is None, f"{said} (compared with the reference)"


def a_bad_item_fails_alone(loaded: LoadedSpecimen) -> None:
    """An item that cannot be answered is refused with a ``ModelmillError``, and only this item fails."""
    if loaded.bad_input is None:
        raise SkippedError("the specimen has no bad input")
    with suppress(ModelmillError):
        loaded.model.answer(loaded.specimen.task, loaded.bad_input)
        raise AssertionError("an item that cannot be answered was answered")
    # The bad item does not change the answer to the next one.
    said = difference(loaded.ask(loaded.inputs[0]), loaded.answers_alone[0], loaded.specimen.tolerance)
    assert said is None, f"{said} (after a bad item)"


def requests_pass_the_contract(loaded: LoadedSpecimen) -> None:
    """The API would accept the inputs as plain and as batched requests."""
    for item in loaded.inputs:
        loaded.task.parse(json.dumps(item))
    loaded.task.parse(json.dumps(as_batched(loaded.task, loaded.inputs)), batched=True)


CHECKS: tuple[Callable[[LoadedSpecimen], None], ...] = (
    requests_pass_the_contract,
    answers_keep_the_contract,
    a_batch_is_answered_as_its_items_alone,
    answers_differ_as_their_items_do,
    answers_equal_the_reference,
    a_bad_item_fails_alone,
)
"""All checks. The first ones find the most basic faults."""
