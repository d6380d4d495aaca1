"""The few formulas that runners share, for numpy arrays.

``normalise`` takes numpy arrays and torch tensors: it uses only operations that both have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Softmax along the last axis, in double precision so that the sum is 1 to the last digit."""
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Sigmoid of each element, without overflow."""
    import numpy as np

    wide = logits.astype(np.float64)
    # exp only of numbers that are not positive: exp(800) would be infinite.
    power = np.exp(-np.abs(wide))
    result: NDArray[np.float64] = np.where(wide >= 0, 1 / (1 + power), power / (1 + power))
    return result


def normalise(vectors: Any) -> Any:
    """Scales vectors along the last axis to length 1; a vector of zeros stays unchanged."""
    length = ((vectors * vectors).sum(-1) ** 0.5)[..., None]
    return vectors / length.clip(1e-12)
