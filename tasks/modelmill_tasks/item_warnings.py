"""Warnings about an item: what was lost of its input, although the model answered.

The code that loses something calls ``warn``. The worker collects the warnings of each item and puts them into
the job's document; a model that runs in this process raises them as Python warnings. A warning is for a loss
that may change the answer: a text or a sound that was cut, a picture that was scaled far down. Resizing that
the model was trained with is no warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum


class WarningCode(StrEnum):
    """The codes of warnings. Values are part of the wire and never change meaning."""

    TEXT_CUT = "text_cut"
    """The model did not read the end, or another part, of a text."""
    OUTPUT_CUT = "output_cut"
    """The answer ends because a limit was reached, not because the model was done."""
    OUTPUT_EMPTY = "output_empty"
    """The model ended its answer before its first character."""
    TEXT_UNKNOWN = "text_unknown"
    """The model does not know some characters or words of a text."""
    SOUND_CUT = "sound_cut"
    """The model did not hear a part of the recording."""
    CHANNELS_MIXED = "channels_mixed"
    """The channels of a recording differ so much that mixing them would lose something."""
    FRAMES_LEFT_OUT = "frames_left_out"
    """The model saw one frame or page of a file that has several."""
    IMAGE_SCALED_DOWN = "image_scaled_down"
    """A task that needs detail saw the picture at much less than its size."""
    IMAGE_STRETCHED = "image_stretched"
    """A task that needs shapes saw the picture with other proportions than its own."""
    COLORS_CHANGED = "colors_changed"
    """The colors or the bit depth of the picture could not be kept."""
    ROWS_LEFT_OUT = "rows_left_out"
    """The model did not see some rows, cells, boxes or candidates of the input."""
    MORE_WARNINGS = "more_warnings"
    """The job has more warnings than its document holds. Only the worker uses this code."""


@dataclass(frozen=True, slots=True)
class ItemWarning:
    """One warning: its code, and a sentence for the caller."""

    code: WarningCode
    message: str


class InputWarning(UserWarning):
    """A model that runs in this process lost something of an input, although it answered.

    Attributes:
        item: Index of the item; None if the call had only one.
        code: What was lost.
        message: A sentence for the caller.
    """

    def __init__(self, item: int | None, warning: ItemWarning) -> None:
        super().__init__(f"{'' if item is None else f'item {item}: '}{warning.message}")
        self.item = item
        self.code = warning.code
        self.message = warning.message


# Python shows an equal warning once. Each input counts; a filter of the user's own comes before this one.
warnings.filterwarnings("always", category=InputWarning, append=True)

_collected: ContextVar[list[ItemWarning] | None] = ContextVar("collected", default=None)


def warn(code: WarningCode, message: str) -> None:
    """Warns the caller of the item that is being prepared or finished.

    Works inside of a runner's ``preprocess`` and ``postprocess`` and of the decoders that these call, in the
    same thread. ``forward`` runs many items at once: keep what it finds in the item's raw result, and warn in
    ``postprocess``. Outside of these calls it does nothing. An equal warning is kept once.

    Args:
        code: What was lost.
        message: One sentence that says what happened, with the figures: "The text was cut to 256 tokens."
    """
    found = _collected.get()
    if found is not None and (warning := ItemWarning(code, message)) not in found:
        found.append(warning)


@contextmanager
def collecting(found: list[ItemWarning]) -> Iterator[None]:
    """Puts the warnings of the block into ``found``."""
    token = _collected.set(found)
    try:
        yield
    finally:
        _collected.reset(token)
