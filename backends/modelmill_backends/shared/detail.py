"""Warns when a task that needs detail or shapes sees a picture much smaller than it is, or stretched.

For detection, segmentation, keypoints, faces and depth. Classification and embedding need neither.
"""

from __future__ import annotations

from modelmill_tasks.item_warnings import WarningCode, warn

SMALLEST_SCALE = 1 / 4
"""Below this share of its width or height, a picture counts as scaled far down: a thing of 32 pixels, which
COCO counts as small, keeps less than 8."""
LARGEST_STRETCH = 2.0
"""A picture is stretched if one side is scaled by more than this, compared with the other."""


def warn_of_scaling(size: tuple[int, int], seen: tuple[int, int]) -> None:
    """Warns the caller if the model sees too little of a picture, or sees it with other proportions.

    Args:
        size: Width and height of the picture, in pixels.
        seen: Width and height of the part of the model's input that shows it, without padding.
    """
    across, down = seen[0] / size[0], seen[1] / size[1]
    shown = f"at {seen[0]} × {seen[1]} of its {size[0]} × {size[1]} pixels"
    if min(across, down) < SMALLEST_SCALE:
        warn(WarningCode.IMAGE_SCALED_DOWN, f"The model saw the picture {shown}; it may miss small things.")
    if max(across, down) > LARGEST_STRETCH * min(across, down):
        warn(WarningCode.IMAGE_STRETCHED, f"The model saw the picture {shown}, so shapes were stretched.")
