"""How a forward pass that takes many steps tells how far it is, and hears that nobody wants it any more."""

from __future__ import annotations


class ProgressSink:
    """Told by ``forward`` after each step; this one does not care.

    Both are cheap and may be called for every item at every step.
    """

    def report(self, index: int, done: int, total: int, unit: str) -> None:
        """Item ``index`` of the batch has ``done`` of at most ``total`` steps behind it.

        Args:
            index: The item's place in the batch.
            done: Steps done.
            total: Steps at most.
            unit: What a step is: ``tokens``, ``steps``, ``seconds``.
        """

    def is_canceled(self, index: int) -> bool:
        """Whether item ``index`` need not go on. Whatever is returned for it is dropped."""
        return False
