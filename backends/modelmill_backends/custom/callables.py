"""The task ``custom``, answered by the function or class that a model's entry names.

The entry names it as ``runner = "package.module:object"``. The object is

- a function ``def answer(inputs: list, config: dict) -> list[dict]``, or
- a class. Its ``__init__(self, options: dict)`` gets the entry's options when the model is loaded. Its
  ``__call__(self, inputs: list, config: dict) -> list[dict]`` answers. If it has a ``close()``, this is
  called when the model is unloaded.

A call gets a whole batch of items with equal config and returns one dict per input, in order.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.registry import named_object
from modelmill_tasks.custom import Input, Output

Answer = Callable[[list[Any], dict[str, Any]], Any]


@dataclass(slots=True)
class Loaded:
    """The author's object, ready to be called."""

    answer: Answer

    def close(self) -> None:
        """Calls its ``close()``, if it has one."""
        if callable(close := getattr(self.answer, "close", None)):
            close()


class CustomRunner(Runner[Input, Loaded]):
    """Calls the author's object and checks its result. The caller of ``forward`` handles its exceptions."""

    backend = "custom"
    task = "custom"

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        entry = context.entry
        if ":" not in entry.runner:
            raise load_failed(entry, 'name your function or class as runner = "package.module:object"')
        if entry.source is not None:
            raise load_failed(
                entry, "the backend custom reads no source; give your class its settings in options"
            )
        named = named_object(entry)
        if inspect.isclass(named):
            make: Any = named
            made = make(copy.deepcopy(entry.options))
            if not callable(made):
                raise load_failed(entry, f"{entry.runner} has no __call__(self, inputs, config)")
            return Loaded(made)
        if entry.options:
            raise load_failed(
                entry,
                f"{entry.runner} is a function and takes no options; a class gets them in __init__",
            )
        return Loaded(named)

    def group_key(self, item: Input) -> Hashable:
        return json.dumps(item.config, sort_keys=True)

    def preprocess(self, item: Input) -> Prepared[Input]:
        return Prepared(item, item.input)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        # Copies: after an exception the same inputs run again, and the items of a job share their config.
        inputs = copy.deepcopy([prepared.data for prepared in batch])
        outputs = self.weights.answer(inputs, copy.deepcopy(batch[0].item.config))
        if not isinstance(outputs, list | tuple):
            raise self._wrong(f"returned {type(outputs).__name__}, not a list with one dict per input")
        if len(outputs) != len(batch):
            raise self._wrong(f"got {len(batch)} inputs and returned {len(outputs)} outputs")
        return outputs

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        if not isinstance(raw, dict):
            raise self._wrong(f"returned {type(raw).__name__} for this input, not a dict")
        return Output(output=self._as_json(raw, "output"))

    def _as_json(self, value: Any, path: str) -> Any:
        """The value as JSON types; tuples become lists."""
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise self._wrong(f"returned {path} with a key of type {type(key).__name__}, not a text")
            return {key: self._as_json(part, f"{path}.{key}") for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._as_json(part, f"{path}[{index}]") for index, part in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            raise self._wrong(f"returned {path} = {value}, which JSON cannot express")
        # Exact types, not isinstance: numpy's float64 is a float, and an enum may be a str.
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise self._wrong(f"returned {path} of type {type(value).__name__}, which JSON cannot express")

    def _wrong(self, what: str) -> ModelmillError:
        return ModelmillError(ErrorCode.INFERENCE_FAILED, f"{self.entry.runner} {what}.")
