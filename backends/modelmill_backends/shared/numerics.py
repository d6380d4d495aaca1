"""The few formulas that runners share, over numpy arrays.

``normalise`` uses only what numpy arrays and torch tensors have in common, and takes both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Along the last axis, in double precision so that the sum is 1 to the last digit shown."""
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Element by element, without overflow at either end."""
    import numpy as np

    wide = logits.astype(np.float64)
    # exp of a non-positive number only: exp(800) would be infinite.
    power = np.exp(-np.abs(wide))
    result: NDArray[np.float64] = np.where(wide >= 0, 1 / (1 + power), power / (1 + power))
    return result


def normalise(vectors: Any) -> Any:
    """Scales the last axis to length 1; a vector of zeros stays one."""
    length = ((vectors * vectors).sum(-1) ** 0.5)[..., None]
    return vectors / length.clip(1e-12)
