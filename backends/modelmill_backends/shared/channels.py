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
        mean: Samples = block.mean(axis=1)
        # The variance: a constant is not heard.
        energies = block.var(axis=0, dtype=np.float64) * len(block)
        if np.isfinite(energies).all():
            whole = float(energies.sum())
            left = float(mean.var(dtype=np.float64)) * len(block)
            self._energies = energies if self._energies is None else self._energies + energies
            self._whole += whole
            if left < CANCELED * whole / channels**2:
                self._lost += whole
        return mean

    @property
    def lost(self) -> float:
        """The share of the recording in which the channels cancel each other, 0 to 1."""
        return self._lost / self._whole if self._whole else 0.0

    @property
    def loudest(self) -> int:
        """The index of the channel with the most energy."""
        return 0 if self._energies is None else int(self._energies.argmax())
