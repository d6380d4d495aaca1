"""Inputs for a task, derived from its contract: unequal texts, unequal images, unequal sounds."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from modelmill_tasks.contract import Task
from modelmill_tasks.shared.audio import Audio
from modelmill_tasks.shared.images import Image, open_image
from modelmill_tasks.shared.sources import source_bytes

TEXT = (
    "The old mill at the end of the valley had not turned for forty years. When Anna came back from Berlin "
    "in the spring of 1998, she found the wheel broken, the roof open to the rain, and a family of owls in "
    "the loft. She liked it at once. By autumn the wheel was mended; the owls had moved to the church tower, "
    "and the first sack of flour was sold to the baker in Ravensburg for eleven marks."
)
SIZES = ((96, 64), (64, 96), (80, 80), (51, 120), (128, 37), (64, 64), (200, 150), (33, 47))
"""Width and height of images, in pixels."""


def samples_of(task: Task, count: int) -> list[dict[str, Any]]:
    """``count`` different items for ``task``.

    They come from the task's own ``samples``. If it has none, they are its example with other texts, images
    and sounds in the batched fields.
    """
    if task.samples is not None:
        own = task.samples(count)
        return [dict(own[index % len(own)]) for index in range(count)]
    return [dict(task.example.input) | _batched_values(task, index) for index in range(count)]


def as_batched(task: Task, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The body of a batched job of these items: every field that any of them has, with one value per item."""
    names = {name for item in items for name in item}
    whole = [task.input.model_validate(item).model_dump(mode="json", include=names) for item in items]
    return {name: [item[name] for item in whole] for name in sorted(names)}


def truncated(task: Task) -> dict[str, Any] | None:
    """The task's example with a truncated file as its first medium; None for a task without media."""
    for name in task.batched_fields:
        kind = kind_of(task, name)
        if kind in ("image", "audio"):
            header, _, data = str(task.example.input[name]).partition(",")
            whole = base64.b64decode(data)
            # The API reads headers only, and these are complete.
            half = base64.b64encode(whole[: len(whole) // 3]).decode()
            return dict(task.example.input) | {name: f"{header},{half}"}
    return None


def _batched_values(task: Task, index: int) -> dict[str, Any]:
    makers = {"text": _text, "image": _image, "audio": _audio}
    kinds = {name: kind_of(task, name) for name in task.batched_fields}
    return {
        name: makers[kind](index, task.example.input[name])
        for name, kind in kinds.items()
        if kind in makers and name in task.example.input
    }


def kind_of(task: Task, name: str) -> str:
    """The kind of a batched field: ``image``, ``audio``, ``text`` or ``other``."""
    field = task.input.model_fields[name]
    for kind, annotated in (("image", Image), ("audio", Audio)):
        if get_args(annotated)[1] in field.metadata:
            return kind
    return "text" if field.annotation is str else "other"


def _text(index: int, _example: Any) -> str:
    words = TEXT.split()
    # 3, 8, 13, … words, each time from another place.
    length = 3 + index * 5 % 60
    start = index * 7 % len(words)
    return " ".join((words + words)[start : start + length])


def _image(index: int, example: Any) -> str:
    picture = open_image(str(example))
    width, height = SIZES[index % len(SIZES)]
    left = index * 11 % max(1, picture.width - width)
    part = picture.crop((left, index * 5 % 20, left + width, index * 5 % 20 + height))
    buffer = io.BytesIO()
    part.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _audio(index: int, example: Any) -> str:
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(source_bytes(str(example))), dtype="float32")
    start, length = int(0.1 * (index % 5) * rate), int((0.4 + 0.15 * (index % 9)) * rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples[start : start + length], rate, format="WAV", subtype="PCM_16")
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"
