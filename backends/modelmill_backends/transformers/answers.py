"""From the rows of a generation to a task's texts, and what to tell the caller about their ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.transformers.generation import Generative
from modelmill_backends.transformers.stopping import Row, continuation, cut
from modelmill_tasks.item_warnings import WarningCode, warn
from modelmill_tasks.shared.generation import FinishReason, Usage


def text_of(model: Generative, row: Row) -> str:
    """The text of a row, without its stop string and without an incomplete character at its end.

    Raises:
        ModelmillError: ``inference_failed``: the model's scores were not numbers.
    """
    if row.broken:
        raise ModelmillError(
            ErrorCode.INFERENCE_FAILED,
            "The model's scores are not numbers. This can happen in float16 with a model made for bfloat16: "
            "set options.dtype in its catalogue entry.",
        )
    decode = partial(model.decode, whole=True)
    return cut(continuation(decode, row.context, row.tokens), row.settings.stop)[0]


def texts_of(model: Generative, rows: Sequence[Row], *, shows_end: bool = False, hint: str = "") -> list[str]:
    """The texts of one item's rows. Warns the caller of a text that is empty, or that was cut.

    Args:
        model: The model.
        rows: The rows of the item.
        shows_end: The task's output says why each text ended, so that a cut needs no warning.
        hint: What to do if the model ended the text at once.

    Raises:
        ModelmillError: as ``text_of``.
    """
    texts = [text_of(model, row) for row in rows]
    for row, text in zip(rows, texts, strict=True):
        if not text.strip():
            warn(WarningCode.OUTPUT_EMPTY, f"The text is empty: {_why_empty(row, hint)}")
        elif not shows_end and (limit := _limit_reached(row)):
            warn(WarningCode.OUTPUT_CUT, f"The text ends at {limit}; the model had not ended it.")
    return texts


def _why_empty(row: Row, hint: str) -> str:
    if row.reason is FinishReason.STOP and len(row.tokens) < 2 and not row.settings.stop:
        return f"the model ended it at once.{hint}"
    if row.reason is FinishReason.STOP and row.settings.stop:
        return "the model ended it at once, or it begins with a string of config.stop."
    return f"the model made {len(row.tokens)} tokens without characters."


def _limit_reached(row: Row) -> str | None:
    """The limit that ended the text, with its figure; None if the model ended it."""
    settings = row.settings
    if row.reason is FinishReason.MAX_TIME:
        return f"max_time, {settings.max_time:g} s"
    forced = settings.last_token is not None and len(row.tokens) >= settings.max_new_tokens
    if row.reason is FinishReason.LENGTH or forced:
        return f"max_new_tokens, {settings.max_new_tokens:,} tokens"
    return None


def now() -> int:
    """The current time in whole Unix seconds, for results."""
    return int(time.time())


def usage_of(prompt_tokens: int, rows: Sequence[Row]) -> Usage:
    """The token counts of one item: its prompt once, and all its texts."""
    completion = sum(len(row.tokens) for row in rows)
    return Usage(
        prompt_tokens=prompt_tokens, completion_tokens=completion, total_tokens=prompt_tokens + completion
    )
