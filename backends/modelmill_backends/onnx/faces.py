"""Faces: YuNet finds them with five landmarks each, SFace or ArcFace turns each into a vector.

Sources: Wu et al., "YuNet: A Tiny Millisecond-level Face Detector" (2023), with the decoding of OpenCV's
``FaceDetectorYN``; Zhong et al., "SFace" (2021); the alignment of ArcFace (Deng et al. 2019) by the
similarity of Umeyama (1991).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelmill_backends.shared.detail import warn_of_scaling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

STRIDES = (8, 16, 32)
DETECTION_SIZE = 640
NMS_OVERLAP = 0.3
MOST_FACES = 1000
ALIGNED_SIZE = 112
ALIGNED = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
"""Positions of the eyes, the tip of the nose and the corners of the mouth; the image's left comes first."""


@dataclass(frozen=True, slots=True)
class Detections:
    """Faces of one image, highest score first.

    Scores are ``[n]``, boxes ``[n, 4]`` (left, top, width, height), landmarks ``[n, 5, 2]``; in pixels of the
    detector's input.
    """

    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]


def fitted(image: Image, size: tuple[int, int]) -> tuple[NDArray[np.uint8], float]:
    """An RGB image, scaled into the upper left of ``[height, width, 3]`` black pixels, and its scale."""
    import numpy as np
    from PIL.Image import Resampling

    height, width = size
    scale = min(width / image.width, height / image.height)
    small = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    warn_of_scaling(image.size, small)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: small[1], : small[0]] = np.asarray(image.resize(small, Resampling.BILINEAR))
    return pixels, scale


def decode(outputs: dict[str, NDArray[np.float32]], width: int, threshold: float) -> Detections:
    """The faces in YuNet's outputs for one image, each ``[cells, values]``.

    Args:
        outputs: ``cls``, ``obj``, ``bbox`` and ``kps``, each followed by ``_8``, ``_16`` and ``_32``.
        width: Width of the detector's input, in pixels.
        threshold: The lowest score of a face.
    """
    import numpy as np

    found = []
    for stride in STRIDES:
        sure = np.clip(outputs[f"cls_{stride}"][:, 0], 0, 1) * np.clip(outputs[f"obj_{stride}"][:, 0], 0, 1)
        scores = np.sqrt(sure)
        cells = np.flatnonzero(scores >= threshold)
        corner = np.stack([cells % (width // stride), cells // (width // stride)], axis=1)
        box, points = outputs[f"bbox_{stride}"][cells], outputs[f"kps_{stride}"][cells]
        centre, size = (corner + box[:, :2]) * stride, np.exp(np.minimum(box[:, 2:], 20)) * stride
        landmarks = (points.reshape(-1, 5, 2) + corner[:, None]) * stride
        rows = (scores[cells, None], centre - size / 2, size, landmarks.reshape(-1, 10))
        found.append(np.concatenate(rows, axis=1))
    rows_of_all = np.concatenate(found).astype(np.float32)
    kept = rows_of_all[_without_overlaps(rows_of_all)]
    return Detections(kept[:, 0], kept[:, 1:5], kept[:, 5:].reshape(-1, 5, 2))


def _without_overlaps(rows: NDArray[np.float32]) -> NDArray[np.intp]:
    """The rows without those that overlap a row of higher score by more than ``NMS_OVERLAP``."""
    import numpy as np

    order = np.argsort(-rows[:, 0], kind="stable")[: 5 * MOST_FACES]
    kept: list[int] = []
    while len(order) and len(kept) < MOST_FACES:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        order = order[_overlaps(rows[best, 1:5], rows[order, 1:5]) <= NMS_OVERLAP]
    return np.array(kept, dtype=np.intp)


def _overlaps(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    near = np.maximum(box[:2], others[:, :2])
    far = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    common = np.clip(far - near, 0, None).prod(axis=1)
    union = box[2:].prod() + others[:, 2:].prod(axis=1) - common
    result: NDArray[np.float32] = common / np.maximum(union, 1e-9)
    return result


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation, scale and shift ``[2, 3]`` that bring points ``[n, 2]`` closest to others (Umeyama)."""
    import numpy as np

    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred = source - source_mean
    left, singular, right = np.linalg.svd((target - target_mean).T @ centred / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0])
    rotation = left @ np.diag(signs) @ right
    scale = (singular * signs).sum() / max(centred.var(axis=0).sum(), 1e-12)
    shift = target_mean - scale * rotation @ source_mean
    return np.hstack([scale * rotation, shift[:, None]])


def aligned(image: Image, landmarks: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The face of an RGB image, turned and scaled to the standard position: ``[112, 112, 3]``."""
    import numpy as np
    from PIL.Image import Resampling, Transform

    # Pillow needs the inverse: where each pixel of the result comes from. It counts from a pixel's corner.
    forth = similarity(landmarks.astype(np.float64), np.asarray(ALIGNED))
    inverse = np.linalg.pinv(np.vstack([forth, [0, 0, 1]]))[:2]
    inverse[:, 2] += 0.5 - 0.5 * inverse[:, :2].sum(axis=1)
    size = (ALIGNED_SIZE, ALIGNED_SIZE)
    face = image.transform(size, Transform.AFFINE, tuple(inverse.ravel()), Resampling.BILINEAR)
    return np.asarray(face)


def run(session: Any, values: Sequence[NDArray[Any]]) -> list[dict[str, NDArray[np.float32]]]:
    """A network's outputs by name, for each of the inputs ``[3, height, width]``.

    All inputs share a pass, unless the file takes one input at a time.
    """
    import numpy as np

    wanted = session.get_inputs()[0]
    names = [output.name for output in session.get_outputs()]
    size = 1 if wanted.shape[0] == 1 else max(1, len(values))
    found: list[dict[str, NDArray[np.float32]]] = []
    for start in range(0, len(values), size):
        batch = np.stack(values[start : start + size]).astype(np.float32)
        results = session.run(None, {wanted.name: batch})
        found += [dict(zip(names, rows, strict=True)) for rows in zip(*results, strict=True)]
    return found
