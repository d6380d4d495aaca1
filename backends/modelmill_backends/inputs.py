"""Turns Python objects into the JSON that a task's contract takes.

Pillow images, bytes, files and sounds as arrays become base64. A list in a batched field becomes items.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pybase64
from pydantic_core import PydanticSerializationError, to_json

from modelmill.errors import ErrorCode, FieldError, MediaError, ModelmillError, invalid_field
from modelmill_tasks.contract import Task, TaskInput
from modelmill_tasks.shared.images import open_image


def item_count(task: Task, inputs: Mapping[str, Any]) -> int | None:
    """The number of items in the inputs; None if no batched field holds a list.

    Raises:
        ModelmillError: ``invalid_input``: two lists differ in length.
    """
    lengths = {
        name: len(inputs[name])
        for name in task.batched_fields
        if name in inputs and task.has_one_value_per_item(name, inputs[name])
    }
    if not lengths:
        return None
    first, count = next(iter(lengths.items()))
    for name in _each(task, inputs):
        if len(inputs[name]) != count:
            message = f"has {len(inputs[name])} values, but {first} has {count}"
            raise invalid_field(name, message)
    return count


def items(task: Task, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The inputs of each item. A field that does not hold one value per item is the same for all."""
    count = item_count(task, inputs)
    if count is None:
        yield dict(inputs)
        return
    each = _each(task, inputs)
    for index in range(count):
        yield {name: value[index] if name in each else value for name, value in inputs.items()}


def parse(task: Task, item: Mapping[str, Any]) -> TaskInput:
    """One item, checked as the API would.

    Raises:
        ModelmillError: ``invalid_input`` or a media code; the error names the fields.
    """
    media = media_fields(task.input)
    wire = {name: _as_json(value, name, name in media) for name, value in item.items()}
    try:
        body = to_json(wire, fallback=_of_array)
    except (PydanticSerializationError, ValueError) as error:
        raise ModelmillError(
            ErrorCode.INVALID_INPUT, f"The inputs hold a value that JSON cannot express: {error}"
        ) from None
    return task.parse(body)


def _each(task: Task, inputs: Mapping[str, Any]) -> set[str]:
    own = {*task.batched_fields, *task.shared_fields}
    return {name for name in own.intersection(inputs) if task.has_one_value_per_item(name, inputs[name])}


@cache
def media_fields(contract: type[TaskInput]) -> frozenset[str]:
    """The fields that hold media, at any depth."""
    schema = contract.model_json_schema()
    definitions = schema.get("$defs", {})

    def holds(node: Any, seen: frozenset[str]) -> bool:
        if isinstance(node, list):
            return any(holds(part, seen) for part in node)
        if not isinstance(node, dict):
            return False
        name = str(node.get("$ref", "")).rpartition("/")[2]
        if name and name not in seen and holds(definitions.get(name), seen | {name}):
            return True
        return "contentEncoding" in node or any(holds(part, seen) for part in node.values())

    return frozenset(name for name, node in schema["properties"].items() if holds(node, frozenset()))


def _as_json(value: Any, field: str, takes_media: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(part, f"{field}.{key}", takes_media) for key, part in value.items()}
    if isinstance(value, list):
        return [_as_json(part, field, takes_media) for part in value]
    data = _bytes_of(value, field)
    if data is None:
        return value
    if not takes_media:
        raise invalid_field(field, "takes no image, sound or file")
    return pybase64.b64encode_as_string(data)


def _bytes_of(value: Any, field: str) -> bytes | None:
    """The bytes of a value that stands for a file; None if the value goes into JSON unchanged."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Path):
        try:
            return value.read_bytes()
        except OSError as error:
            raise invalid_field(field, f"the file {value} cannot be read ({error.strerror})") from None
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(value, pillow.Image):
        return _of_image(value, field)
    if isinstance(value, tuple) and len(value) == 2 and hasattr(value[0], "dtype"):
        return _of_sound(*value, field)
    return None


def _of_image(image: Any, field: str) -> bytes:
    buffer = io.BytesIO()
    try:
        # BMP is lossless and only copies the pixels; PNG would compress them.
        open_image(image).save(buffer, "BMP")
    except MediaError as error:
        raise ModelmillError(
            error.code, f"{field}: {error.message}", fields=[FieldError(field, error.message)]
        ) from None
    return buffer.getvalue()


def _of_sound(samples: Any, rate: Any, field: str) -> bytes:
    """Samples ``[frames]`` or ``[frames, channels]`` as a WAV file that keeps their precision."""
    import soundfile

    buffer = io.BytesIO()
    subtype = "FLOAT" if samples.dtype.kind == "f" else None
    try:
        soundfile.write(buffer, samples, int(rate), format="WAV", subtype=subtype)
    except (soundfile.LibsndfileError, TypeError, ValueError, IndexError) as error:
        raise invalid_field(field, f"is no sound of the form (samples, sampling rate): {error}") from None
    return buffer.getvalue()


def _of_array(value: Any) -> Any:
    """Arrays, and single numbers of arrays, as lists and numbers."""
    if callable(as_list := getattr(value, "tolist", None)):
        return as_list()
    raise ValueError(f"a value of type {type(value).__name__}")
