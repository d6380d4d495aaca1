"""Prepares images as a ``preprocessor_config.json`` asks, with Pillow and numpy only.

``transformers`` does the same, but importing it imports torch. This module knows the steps of CLIP's and
SigLIP's processors, in their order: resize, centre crop, rescale, normalise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmill.catalogue import ModelEntry
from modelmill.errors import ErrorCode, MediaError
from modelmill_backends.failures import load_failed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

MAX_ASPECT = 100
BILINEAR, BICUBIC = 2, 3
_RESCALE = 1 / 255
_KNOWN = ("CLIPImageProcessor", "CLIPFeatureExtractor", "SiglipImageProcessor", "ViTImageProcessor")


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Sizes are (height, width). ``shortest_edge`` keeps the aspect ratio and overrides ``size``."""

    shortest_edge: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int
    rescale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def cropped(self, image: Image) -> NDArray[np.uint8]:
        """An RGB image as ``[height, width, 3]``, resized and cropped. The last step is ``affine``.

        Raises:
            MediaError: ``invalid_media``: the aspect ratio is kept, and the image is too narrow for that.
        """
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
        return np.asarray(image)

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and shift, ``[channels, 1, 1]``: ``values * scale + shift`` rescales and normalises."""
        import numpy as np

        mean, deviation = (np.asarray(values)[:, None, None] for values in (self.mean, self.deviation))
        return (self.rescale / deviation).astype(np.float32), (-mean / deviation).astype(np.float32)

    def pixels(self, image: Image) -> NDArray[np.float32]:
        """An RGB image as ``[3, height, width]``, normalised."""
        import numpy as np

        scale, shift = self.affine()
        # Channels move to the front as bytes, then the arithmetic is in place: this takes a sixth of the
        # time of the simple formula.
        values = self.cropped(image).transpose(2, 0, 1).astype(np.float32, order="C")
        values *= scale
        values += shift
        return values


def read_image_settings(entry: ModelEntry, folder: Path) -> ImageSettings:
    """Reads ``preprocessor_config.json``, or the part of ``processor_config.json`` that replaces it.

    Raises:
        ModelmillError: ``model_load_failed``: neither file exists, or it asks for other steps.
    """
    config = _read(folder / "preprocessor_config.json") or _read(folder / "processor_config.json").get(
        "image_processor", {}
    )
    if not config:
        raise load_failed(entry, "its folder holds no preprocessor_config.json")
    try:
        return image_settings(config)
    except UnknownStepsError as error:
        raise load_failed(entry, f"its images need {error}") from None


class UnknownStepsError(ValueError):
    """A processor needs steps that ``ImageSettings`` does not have. The text names them."""


def image_settings(config: Mapping[str, Any]) -> ImageSettings:
    """The settings of a processor, from its file or its ``to_dict``.

    Raises:
        UnknownStepsError: it needs other steps.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or _KNOWN[0])
    if kind.removesuffix("Fast").removesuffix("Pil") not in _KNOWN:
        raise UnknownStepsError(f"{kind}; supported are {', '.join(_KNOWN)}")
    if config.get("do_pad"):
        raise UnknownStepsError("padding, which is not supported")
    size = config.get("size", 224) if config.get("do_resize", True) else None
    # CLIP keeps the aspect ratio and crops unless its file says otherwise; the others do so if it says so.
    is_clip = kind.startswith("CLIP")
    crop = config.get("crop_size", 224 if is_clip else None)
    crops = bool(config.get("do_center_crop", is_clip)) and crop is not None
    if isinstance(size, int):
        # Old files hold a single number.
        size = {"shortest_edge": size} if is_clip else {"height": size, "width": size}
    if size is not None:
        size = {name: value for name, value in size.items() if value is not None}
        if size.keys() not in ({"shortest_edge"}, {"height", "width"}):
            raise UnknownStepsError(f"a size by {', '.join(size)}, which is not supported")
    normalises = config.get("do_normalize", True)
    return ImageSettings(
        shortest_edge=size.get("shortest_edge") if size else None,
        size=_pair(size) if size and "height" in size else None,
        crop=_pair(crop) if crops else None,
        resample=int(config.get("resample", BILINEAR if kind.startswith("ViT") else BICUBIC)),
        rescale=float(config.get("rescale_factor", _RESCALE)) if config.get("do_rescale", True) else 1.0,
        mean=_channels(config["image_mean"]) if normalises else (0.0,),
        deviation=_channels(config["image_std"]) if normalises else (1.0,),
    )


def check_aspect(image: Image) -> None:
    """Refuses a very narrow image: it would become huge when its short side is scaled to the model's size.

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
    # If the image is smaller than the crop, Pillow fills the rest with black, as the original processor does.
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))


def _channels(values: Any) -> tuple[float, ...]:
    return (float(values),) if isinstance(values, int | float) else tuple(values)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
