"""The answer of a classifier with fixed labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelmill_tasks.image_classification import Class, Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def best_classes(scores: NDArray[np.floating[Any]], labels: Sequence[str], top_k: int) -> Output:
    """The ``top_k`` best labels by scores ``[labels]``, best first; all labels if there are fewer."""
    import numpy as np

    order = np.argsort(-scores, kind="stable")[:top_k]
    return Output(classes=[Class(label=labels[index], score=float(scores[index])) for index in order])
