"""A cache for embeddings of sentences that many jobs repeat, such as the classes of a zero-shot job."""

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
    """An LRU cache of a text encoder. Not thread-safe, which is enough: only ``forward`` uses it.

    Args:
        encode: Sentences → vectors ``[n, dim]``, of any length.
        capacity: Number of sentences kept. 10,000 vectors of 512 floats are 20 MB.
        chunk: The most sentences that one pass encodes: a batch may have thousands of classes.
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
        """The vector of length 1 of each sentence. Missing ones are encoded in as few passes as possible."""
        import numpy as np

        wanted = dict.fromkeys(sentences)
        # Sentences of similar length share a pass, so that less padding is encoded.
        missing = sorted((text for text in wanted if text not in self._kept), key=len)
        found = {text: self._kept[text] for text in wanted if text in self._kept}
        for start in range(0, len(missing), self._chunk):
            chunk = missing[start : start + self._chunk]
            vectors = normalise(np.asarray(self._encode(chunk), dtype=np.float32))
            # Copies: a view of one row would keep the whole chunk's array in memory.
            found.update((text, vector.copy()) for text, vector in zip(chunk, vectors, strict=True))
        for text in wanted:
            self._kept[text] = found[text]
            self._kept.move_to_end(text)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return found
