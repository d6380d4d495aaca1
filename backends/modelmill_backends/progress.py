"""The way for a forward pass with many steps to report its progress and to learn that an item is canceled."""

from __future__ import annotations


class ProgressSink:
    """Receives what ``forward`` reports after each step. This default does nothing.

    Both methods are cheap: ``forward`` may call them for every item at every step.
    """

    def report(self, index: int, done: int, total: int, unit: str) -> None:
        """Item ``index`` of the batch has finished ``done`` of at most ``total`` steps.

        Args:
            index: Position of the item in the batch.
            done: Finished steps.
            total: The largest number of steps.
            unit: The kind of step: ``tokens``, ``steps``, ``seconds``.
        """

    def is_canceled(self, index: int) -> bool:
        """Whether item ``index`` is canceled. ``forward`` may then stop it; its result is dropped."""
        return False
