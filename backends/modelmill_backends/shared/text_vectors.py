"""Embeddings of sentences that come again and again, such as the classes of a zero-shot job."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from modelmill_backends.shared.numerics import normalise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CAPACITY = 10_000
CHUNK = 64


class TextVectors:
    """An LRU in front of a text encoder. Not thread-safe: ``forward`` runs alone.

    Args:
        encode: Sentences → vectors ``[n, dim]``, of any length.
        capacity: Sentences kept. 10,000 vectors of 512 floats are 20 MB.
        chunk: Sentences that one pass encodes at most: a batch may bring thousands of classes.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], Any], capacity: int = CAPACITY, chunk: int = CHUNK
    ) -> None:
        self._encode = encode
        self._capacity = capacity
        self._chunk = chunk
        self._kept: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, sentences: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vector, of length 1, of each sentence; all that are missing are encoded together."""
        import numpy as np

        wanted = dict.fromkeys(sentences)
        # Like lengths go together, so that less padding is encoded.
        missing = sorted((text for text in wanted if text not in self._kept), key=len)
        found = {text: self._kept[text] for text in wanted if text in self._kept}
        for start in range(0, len(missing), self._chunk):
            chunk = missing[start : start + self._chunk]
            vectors = normalise(np.asarray(self._encode(chunk), dtype=np.float32))
            # Copies: a row that is kept would keep the whole chunk's array alive.
            found.update((text, vector.copy()) for text, vector in zip(chunk, vectors, strict=True))
        for text in wanted:
            self._kept[text] = found[text]
            self._kept.move_to_end(text)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return found
