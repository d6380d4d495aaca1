"""The answer of speech recognisers: a text and, if asked for, the times of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from modelmill.errors import ModelmillError, invalid_field
from modelmill_tasks.automatic_speech_recognition import Chunk, Output

PAUSE_S = 0.5
"""A pause of this length ends a segment, for models that give the times of words only."""


def spoken_words(words: Sequence[Chunk], timestamps: bool | Literal["word"]) -> Output:
    """The answer of a model that gives the times of each word."""
    text = " ".join(word.text for word in words)
    if timestamps is False:
        return Output(text=text)
    return Output(text=text, chunks=list(words) if timestamps == "word" else _segments(words))


def refuse_config(field: str, message: str) -> ModelmillError:
    """``invalid_input`` for a value in ``config`` that this model does not support."""
    return invalid_field(f"config.{field}", message)


def _segments(words: Sequence[Chunk]) -> list[Chunk]:
    groups: list[list[Chunk]] = []
    for word in words:
        if groups and word.start - (groups[-1][-1].end or 0.0) < PAUSE_S:
            groups[-1].append(word)
        else:
            groups.append([word])
    return [
        Chunk(text=" ".join(word.text for word in group), start=group[0].start, end=group[-1].end)
        for group in groups
    ]
