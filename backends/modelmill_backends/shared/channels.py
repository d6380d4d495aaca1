"""Many channels become one, which is heard.

The channels are averaged. But where two channels are opposite, as after a cable with swapped wires, their
average is silence. Then the loudest channel is taken instead, for the whole recording.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelmill_backends.shared.audio import Samples

CANCELED = 0.3
"""Channels cancel each other if their average has less than this share of what unlike channels leave."""
SOME, ALL = 0.05, 0.9
"""Shares of the recording's energy that must be lost, for another choice and for calling it all."""


class Mixer:
    """Averages blocks, and measures what is lost."""

    def __init__(self) -> None:
        self._energies: NDArray[np.float64] | None = None
        self._whole = 0.0
        self._lost = 0.0

    def average(self, block: Samples) -> Samples:
        """``[frames, channels]`` → ``[frames]``."""
        import numpy as np

        channels = block.shape[1]
        if channels == 1:
            return block[:, 0]
        # Products of matrices take a tenth of the time of sums along an axis as short as the channels.
        # Values that are not numbers are refused later.
        with np.errstate(invalid="ignore", over="ignore"):
            mean: Samples = block @ np.full(channels, 1 / channels, block.dtype)
            self._measure(block)
        return mean

    def _measure(self, block: Samples) -> None:
        import numpy as np

        sums = (np.ones(len(block), block.dtype) @ block).astype(np.float64)
        # The covariance, times the length: a constant is not heard.
        spread = (block.T @ block).astype(np.float64) - np.outer(sums, sums) / len(block)
        if not np.isfinite(spread).all():
            return
        energies = spread.diagonal()
        whole, left = float(energies.sum()), float(spread.sum()) / len(energies) ** 2
        self._energies = energies if self._energies is None else self._energies + energies
        self._whole += whole
        if left < CANCELED * whole / len(energies) ** 2:
            self._lost += whole

    @property
    def lost(self) -> float:
        """The share of the recording in which the channels cancel each other, 0 to 1."""
        return self._lost / self._whole if self._whole else 0.0

    @property
    def loudest(self) -> int:
        """The index of the channel with the most energy."""
        return 0 if self._energies is None else int(self._energies.argmax())
