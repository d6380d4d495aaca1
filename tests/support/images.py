"""Images that a loaded model draws."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modelmill.catalogue import ModelEntry
from modelmill_backends.loader import LoadedModel
from tests.support.models import folder_entry

TASK = "text-to-image"
STEPS = {"num_inference_steps": 2}


def entry(folder: Path, **fields: Any) -> ModelEntry:
    return folder_entry(folder, TASK, "diffusers", **({"max_batch": 64} | fields))


def draw(model: LoadedModel, *prompts: str, **config: Any) -> list[list[dict[str, Any]]]:
    items = [{"prompt": prompt, "config": STEPS | config} for prompt in prompts]
    return [output.model_dump(mode="json")["images"] for output in model.answer(TASK, *items)]


def opened(image: dict[str, Any]) -> Any:
    header, _, data = image["image"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert header == f"data:image/{str(picture.format).lower()};base64"
    return picture


def pixels(image: dict[str, Any]) -> NDArray[np.int16]:
    return np.asarray(opened(image)).astype(np.int16)


def apart(one: dict[str, Any], other: dict[str, Any]) -> int:
    """The largest difference of a pixel, out of 255."""
    return int(np.abs(pixels(one) - pixels(other)).max())
