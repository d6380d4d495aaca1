"""Turns a decoded picture of any kind into the RGB that models read.

Transparent pictures are laid on white, as a page shows them. Greys with more than eight bits are scaled.
Where that needs a guess, the caller gets a warning. Color profiles are not applied: models are trained on
pixels as they are stored, and photos in a wide color space shift little.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from modelmill.errors import ErrorCode, MediaError
from modelmill_tasks.item_warnings import WarningCode, warn
from modelmill_tasks.shared.image_headers import Samples

if TYPE_CHECKING:
    from PIL.Image import Image

DEEP_MODES = ("I", "F")
FAINT = 64
"""A picture whose values span less than this of 255 is one that a reader can hardly see."""
LIKELY_BYTES, LIKELY_12_BITS = 255, 4095


def to_rgb(image: Image, samples: Samples | None = None) -> Image:
    """The picture as RGB.

    Args:
        image: Decoded, in any mode.
        samples: What its file says of its values. None: as the mode has them.

    Raises:
        MediaError: its values cannot be brought to eight bits.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    alpha = None
    if image.mode.startswith("I;16") or image.mode in DEEP_MODES:
        if "transparency" in image.info and image.mode != "F":
            alpha = _mask_of_key(image, image.info["transparency"])
        image = _to_bytes(image, samples or Samples(16 if image.mode.startswith("I;16") else 32))
    elif image.mode == "L" and samples is not None and samples.signed:
        image = image.point([(value + 128) % 256 for value in range(256)])
        warn(WarningCode.COLORS_CHANGED, "The picture has values below zero; they were moved up by 128.")
    elif image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        image = _with_alpha(image, samples)
        alpha = image.getchannel("A")
    if alpha is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return _laid_on_a_page(image.convert("RGB"), alpha)


def _with_alpha(image: Image, samples: Samples | None) -> Image:
    """As RGBA."""
    key = image.info.get("transparency")
    if isinstance(key, int | tuple) and image.mode in ("1", "L", "RGB"):
        image.info["transparency"] = _key_of_bytes(key, samples.bits if samples else 8)
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")


def _key_of_bytes(key: Any, bits: int) -> Any:
    """The transparent color with eight bits. Files give it with the bits of their samples."""
    if isinstance(key, tuple):
        return tuple(_key_of_bytes(each, bits) for each in key)
    return key >> bits - 8 if bits > 8 else min(key * 255 // (2**bits - 1), 255)


def _mask_of_key(image: Image, key: int) -> Image:
    """Transparent where the grey is ``key``."""
    from PIL import ImageMath

    mask = ImageMath.lambda_eval(
        lambda given: given["convert"]((given["grey"] != key) * 255, "L"), grey=image.convert("I")
    )
    return cast("Image", mask)


def _laid_on_a_page(colors: Image, alpha: Image) -> Image:
    from PIL import Image as Pillow

    def laid_on(page: str) -> Image:
        result = Pillow.new("RGB", colors.size, page)
        # The colors below are weighted by alpha before anything is scaled, so no edge gets a fringe.
        result.paste(colors, mask=alpha)
        return result

    lowest, highest = cast("tuple[int, int]", alpha.getextrema())
    if lowest == 255:
        return colors
    if highest == 0:
        message = "The picture is transparent everywhere; the model saw a white one."
        warn(WarningCode.COLORS_CHANGED, message)
    on_white = laid_on("white")
    if _span(on_white) >= FAINT or highest - lowest < FAINT:
        return on_white
    on_black = laid_on("black")
    if _span(on_black) <= _span(on_white):
        return on_white
    message = "The picture is light and its ground transparent, so it was laid on black instead of white."
    warn(WarningCode.COLORS_CHANGED, message)
    return on_black


def _span(image: Image) -> int:
    """How far the values of a color lie apart, for the color where that is most."""
    return max(high - low for low, high in cast("tuple[tuple[int, int], ...]", image.getextrema()))


def _to_bytes(image: Image, samples: Samples) -> Image:
    """A grey picture with more than eight bits, as one with eight."""
    if image.mode == "F":
        low, high = _range_of_floats(image)
    else:
        # Other modes of 16 bits allow no arithmetic.
        image = image if image.mode == "I" else image.convert("I")
        low, high = _range_of_integers(image, samples)
    scale = 255 / (high - low) if high > low else 0.0
    offset = 0.5 - low * scale
    grey = image.point(lambda value: value * scale + offset).convert("L")
    return grey.point([255 - value for value in range(256)]) if samples.inverted else grey


def _range_of_integers(image: Image, samples: Samples) -> tuple[float, float]:
    """The values that become black and white."""
    low, high = cast("tuple[int, int]", image.getextrema())
    if low < 0 and not samples.signed and samples.bits >= 32:
        raise _unreadable("It has values above 2147483647: save it with 16 bits or as floating point.")
    if low < 0 or high > 65535:
        return _stretched(low, high)
    if samples.bits > 16:
        return 0, LIKELY_BYTES if high <= LIKELY_BYTES else 65535
    full = 2 ** (samples.bits - samples.signed) - 1
    if 0 < high <= LIKELY_12_BITS < full:
        top = LIKELY_BYTES if high <= LIKELY_BYTES else LIKELY_12_BITS
        warn(
            WarningCode.COLORS_CHANGED,
            f"The picture has {samples.bits} bits a pixel and no value above {high}; "
            f"it was read as one of {top.bit_length()} bits, since it would be almost black otherwise.",
        )
        return 0, top
    return 0, full


def _range_of_floats(image: Image) -> tuple[float, float]:
    # The mean of all values is not finite if one of them is not.
    mean = cast("float", image.reduce(image.size).getpixel((0, 0)))
    low, high = cast("tuple[float, float]", image.getextrema())
    if not all(map(math.isfinite, (mean, low, high))):
        raise _unreadable("Some of its values are infinite or no numbers (NaN): replace them.")
    if low >= 0 and high <= 1:
        return 0, 1
    if low >= 0 and 16 <= high <= LIKELY_BYTES:
        return 0, LIKELY_BYTES
    if low >= 0 and LIKELY_12_BITS < high <= 65535:
        return 0, 65535
    return _stretched(low, high)


def _stretched(low: float, high: float) -> tuple[float, float]:
    warn(
        WarningCode.COLORS_CHANGED,
        f"The picture's values lie between {low:g} and {high:g}; they were scaled so that these are black "
        "and white.",
    )
    return low, high


def _unreadable(why: str) -> MediaError:
    return MediaError(ErrorCode.INVALID_MEDIA, f"The image's values cannot be read as brightness. {why}")
