"""What a model does not read of a text: the tokens beyond its window, and those that it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from modelmill_tasks.item_warnings import ItemWarning, WarningCode, warn

NOTEWORTHY = 0.1
"""Share of a text's tokens that the model does not know, from which the caller is warned."""


class Read(NamedTuple):
    """The tokens of one text as the model reads them."""

    ids: tuple[int, ...]
    """Token ids, special ones included, at most as many as the window holds."""
    total: int
    """Number of tokens before the text was cut, special ones included."""
    unknown: int
    """How many of ``ids`` stand for something that the model does not know."""
    special: int = 0
    """How many of ``ids`` the tokenizer has added to the text."""

    @property
    def own(self) -> int:
        """How many of ``ids`` belong to the text itself."""
        return len(self.ids) - self.special


def read_encoding(encoding: Any, unknown_id: int | None) -> Read:
    """The tokens of an ``Encoding`` of the library ``tokenizers``, which cut the text at the window."""
    ids, mask = encoding.ids, encoding.special_tokens_mask
    rest = sum(len(part.ids) - sum(part.special_tokens_mask) for part in encoding.overflowing)
    unknown = 0
    if unknown_id in ids:
        # CLIP has one token for the end of a text and for what it does not know.
        unknown = sum(number == unknown_id for number, added in zip(ids, mask, strict=True) if not added)
    return Read(tuple(ids), len(ids) + rest, unknown, sum(mask))


def warn_of(read: Read, what: str = "text") -> None:
    """Warns the caller of what the model does not read of a text.

    Args:
        read: Its tokens.
        what: A noun for the text: "The text was cut …".
    """
    warn_cut(what, len(read.ids), read.total)
    warn_unknown(what, read.unknown, read.own)


def warn_cut(what: str, kept: int, total: int) -> None:
    """Warns the caller if a text of ``total`` tokens was cut to ``kept`` tokens."""
    if total > kept:
        warn(WarningCode.TEXT_CUT, _cut(f"The {what}", kept, total))


def warn_unknown(what: str, unknown: int, tokens: int) -> None:
    """Warns the caller if the model does not know a noteworthy part of a text's ``tokens``."""
    if _is_noteworthy(unknown, tokens):
        warn(WarningCode.TEXT_UNKNOWN, _unknown(f"the {what}", unknown, tokens) + ".")


def losses_of(reads: Sequence[Read], field: str) -> list[ItemWarning]:
    """The warnings about a list of texts, one for each kind of loss.

    Args:
        reads: The tokens of each text.
        field: The request's field that holds the list; a text is named ``classes.3``.
    """
    found = []
    cut = [place for place, read in enumerate(reads) if read.total > len(read.ids)]
    if cut:
        longest = max(cut, key=lambda place: reads[place].total)
        message = _cut(f"{field}.{longest}", len(reads[longest].ids), reads[longest].total)
        others = f" {len(cut) - 1} more of {field} were cut, too." if len(cut) > 1 else ""
        found.append(ItemWarning(WarningCode.TEXT_CUT, message + others))
    foreign = [place for place, read in enumerate(reads) if _is_noteworthy(read.unknown, read.own)]
    if foreign:
        first = reads[foreign[0]]
        message = _unknown(f"{field}.{foreign[0]}", first.unknown, first.own)
        more = f", and some of {len(foreign) - 1} more texts." if len(foreign) > 1 else "."
        found.append(ItemWarning(WarningCode.TEXT_UNKNOWN, message + more))
    return found


def _is_noteworthy(unknown: int, tokens: int) -> bool:
    return unknown > 0 and unknown >= NOTEWORTHY * tokens


def _cut(what: str, kept: int, total: int) -> str:
    return f"{what} was cut to {kept:,} tokens; it has {total:,}."


def _unknown(what: str, unknown: int, tokens: int) -> str:
    return f"{unknown:,} of the {tokens:,} tokens of {what} are unknown to the model"


def unknown_id_of(tokenizer: Any) -> int | None:
    """The id that a ``Tokenizer`` of the library ``tokenizers`` gives to what it does not know, if any."""
    model = tokenizer.model
    number = getattr(model, "unk_id", None)
    if number is not None:
        return int(number)
    token = getattr(model, "unk_token", None)
    found: int | None = tokenizer.token_to_id(token) if token else None
    return found
