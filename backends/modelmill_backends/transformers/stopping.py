"""Ends each row of a batch where its own settings ask for it, and reports the progress of the rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelmill_backends.progress import ProgressSink
from modelmill_backends.transformers.decoding import DecodingSettings
from modelmill_tasks.shared.generation import FinishReason

SLACK = 4
"""Additional tokens in the search for a stop string, because some tokens give no characters."""

Decode = Callable[[Sequence[int]], str]


@dataclass(slots=True)
class Row:
    """One text that is being generated.

    Attributes:
        item: Position of its item in the batch.
        settings: The item's settings.
        sequence: Its number among the item's answers.
        context: The last tokens of the prompt, if the text continues the prompt; otherwise empty.
        ends: Tokens that end it, in addition to the model's own.
        tokens: The tokens so far.
        reason: Why it ended; None until then.
        broken: The model's scores for it were not numbers.
    """

    item: int
    settings: DecodingSettings
    sequence: int = 0
    context: Sequence[int] = ()
    ends: Collection[int] = ()
    tokens: list[int] = field(default_factory=list)
    reason: FinishReason | None = None
    broken: bool = False


def continuation(decode: Decode, context: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of ``tokens`` as a continuation of ``context``, including a space at its beginning."""
    if not context:
        return decode(tokens)
    before, whole = decode(context), decode([*context, *tokens])
    # If a character has bytes on both sides, the whole does not begin with the text of the context.
    return whole[len(before) :] if whole.startswith(before) else decode(tokens)


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before its first stop string, and whether it has one."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


class Watch:
    """A stopping criterion of the library, for one pass of ``generate``.

    Called after each token; reads the new ones once from the device.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        eos: Collection[int],
        decode: Decode,
        progress: ProgressSink,
        ended: list[bool],
    ) -> None:
        """Prepares the criterion for the rows of one pass.

        Args:
            rows: The texts; this object fills in their tokens and reasons.
            eos: Tokens that end any text of the model.
            decode: Turns tokens into text.
            progress: Receives the progress, and says which items are canceled.
            ended: ``[rows]``; this object sets an element when its row has ended.
        """
        self._rows = rows
        self._eos = frozenset(eos)
        self._decode = decode
        self._progress = progress
        self._ended = ended
        self._started = time.monotonic()
        # The number of bytes is enough: each token has at least one.
        self._reach = [
            max((len(stop.encode()) for stop in row.settings.stop), default=0) + SLACK for row in rows
        ]

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        """Whether each row has ended, ``[rows]``, after tokens ``[rows, length]``."""
        import torch

        spent = time.monotonic() - self._started
        canceled: dict[int, bool] = {}
        for index, token in enumerate(ids[:, -1].tolist()):
            row = self._rows[index]
            if row.reason is not None:
                continue
            row.tokens.append(token)
            row.reason = self._reason(row, token, self._reach[index], spent)
            if row.item not in canceled:
                canceled[row.item] = self._progress.is_canceled(row.item)
                self._progress.report(row.item, len(row.tokens), row.settings.max_new_tokens, "tokens")
            if canceled[row.item]:
                row.reason = row.reason or FinishReason.LENGTH
            self._ended[index] = row.reason is not None
        return torch.tensor(self._ended, device=ids.device)

    def _reason(self, row: Row, token: int, reach: int, spent: float) -> FinishReason | None:
        settings = row.settings
        if token in self._eos or token in row.ends or (settings.stop and self._reaches_stop(row, reach)):
            return FinishReason.STOP
        if len(row.tokens) >= settings.max_new_tokens:
            return FinishReason.LENGTH
        if settings.max_time is not None and spent >= settings.max_time:
            return FinishReason.MAX_TIME
        return None

    def _reaches_stop(self, row: Row, reach: int) -> bool:
        stop = row.settings.stop
        last = self._decode([*row.context, *row.tokens[-reach:]][-reach:])
        if not cut(last, stop)[1]:
            return False
        # The match may begin in the prompt.
        return cut(continuation(self._decode, row.context, row.tokens), stop)[1]


class BeamWatch:
    """As ``Watch``, for a beam search: its rows are candidates, several per item."""

    def __init__(self, items: Sequence[int], settings: DecodingSettings, progress: ProgressSink) -> None:
        self._items = items
        self._settings = settings
        self._progress = progress
        self._started = time.monotonic()
        self._step = 0
        self.out_of_time = False

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        """Whether each candidate has ended, ``[items * candidates]``."""
        import torch

        self._step += 1
        limit = self._settings.max_time
        self.out_of_time = limit is not None and time.monotonic() - self._started >= limit
        ended = []
        for item in self._items:
            self._progress.report(item, self._step, self._settings.max_new_tokens, "tokens")
            ended.append(self.out_of_time or self._progress.is_canceled(item))
        return torch.tensor(ended, device=ids.device).repeat_interleave(len(ids) // len(ended))
