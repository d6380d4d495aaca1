"""Images as a ``preprocessor_config.json`` wants them, with Pillow and numpy alone.

``transformers`` does the same, but importing it imports torch. Covered are the steps of CLIP's and
SigLIP's processors, in their order: resize, centre crop, rescale, normalise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.failures import load_failed
from modelmill.catalogue import ModelEntry
from modelmill.errors import ErrorCode, MediaError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

MAX_ASPECT = 100
BICUBIC = 3
_RESCALE = 1 / 255
_KNOWN = ("CLIPImageProcessor", "CLIPFeatureExtractor", "SiglipImageProcessor", "ViTImageProcessor")


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Sizes are (height, width); ``shortest_edge`` keeps the aspect and goes before ``size``."""

    shortest_edge: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int
    rescale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def pixels(self, image: Image) -> NDArray[np.float32]:
        """An RGB image as ``[3, height, width]``."""
        import numpy as np
        from PIL.Image import Resampling

        width, height = image.size
        size = self.size
        if self.shortest_edge is not None:
            check_aspect(image)
            edge, short = self.shortest_edge, min(width, height)
            size = (int(edge * height / short), int(edge * width / short))
        if size is not None and size != (height, width):
            image = image.resize((size[1], size[0]), Resampling(self.resample))
        if self.crop is not None:
            image = _centre(image, *self.crop)
        mean, deviation = np.asarray(self.mean, np.float32), np.asarray(self.deviation, np.float32)
        values = np.asarray(image, dtype=np.float32) * np.float32(self.rescale)
        values = (values - mean) / deviation
        return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)


def read_image_settings(entry: ModelEntry, folder: Path) -> ImageSettings:
    """Reads ``preprocessor_config.json``, or the part of ``processor_config.json`` that took its place.

    Raises:
        ModelmillError: ``model_load_failed``: there is none, or it asks for other steps.
    """
    config = _read(folder / "preprocessor_config.json") or _read(folder / "processor_config.json").get(
        "image_processor", {}
    )
    if not config:
        raise load_failed(entry, "its folder holds no preprocessor_config.json")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or _KNOWN[0])
    if kind.removesuffix("Fast").removesuffix("Pil") not in _KNOWN:
        raise load_failed(entry, f"its images need {kind}; known here are {', '.join(_KNOWN)}")
    size = config.get("size", 224) if config.get("do_resize", True) else None
    # Old files give one number: the shortest edge where a crop follows, else both sides.
    crop = config.get("crop_size", 224 if kind.startswith("CLIP") else None)
    crops = bool(config.get("do_center_crop", crop is not None)) and crop is not None
    if isinstance(size, int):
        size = {"shortest_edge": size} if crops else {"height": size, "width": size}
    normalises = config.get("do_normalize", True)
    return ImageSettings(
        shortest_edge=size.get("shortest_edge") if size else None,
        size=_pair(size) if size and "height" in size else None,
        crop=_pair(crop) if crops else None,
        resample=int(config.get("resample", BICUBIC)),
        rescale=float(config.get("rescale_factor", _RESCALE)) if config.get("do_rescale", True) else 1.0,
        mean=tuple(config["image_mean"]) if normalises else (0.0,),
        deviation=tuple(config["image_std"]) if normalises else (1.0,),
    )


def check_aspect(image: Image) -> None:
    """Refuses what would grow beyond all bounds when its short side is scaled up to the model's size.

    Raises:
        MediaError: ``invalid_media``.
    """
    short, long = sorted(image.size)
    if long > MAX_ASPECT * short:
        raise MediaError(
            ErrorCode.INVALID_MEDIA,
            f"The image has {image.width} × {image.height} pixels; "
            f"this model takes images up to {MAX_ASPECT} times as long as wide.",
        )


def _centre(image: Image, height: int, width: int) -> Image:
    # Pillow fills what lies outside of a small image with black, as the original does.
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
