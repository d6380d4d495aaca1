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
    def is_cut(self) -> bool:
        return self.total > len(self.ids)

    @property
    def is_foreign(self) -> bool:
        """Whether the model does not know a noteworthy part of the text."""
        return self.unknown > 0 and self.unknown >= NOTEWORTHY * (len(self.ids) - self.special)


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
    warn_unknown(what, read.unknown, len(read.ids) - read.special)


def warn_cut(what: str, kept: int, total: int) -> None:
    """Warns the caller if a text of ``total`` tokens was cut to ``kept`` tokens."""
    if total > kept:
        warn(WarningCode.TEXT_CUT, f"The {what} was cut to {kept:,} tokens; it has {total:,}.")


def warn_unknown(what: str, unknown: int, tokens: int) -> None:
    """Warns the caller if the model does not know a noteworthy part of a text's ``tokens``."""
    if unknown and unknown >= NOTEWORTHY * tokens:
        warn(
            WarningCode.TEXT_UNKNOWN,
            f"{unknown:,} of the {tokens:,} tokens of the {what} are unknown to the model.",
        )


def losses_of(reads: Sequence[Read], field: str) -> list[ItemWarning]:
    """The warnings about a list of texts, one for each kind of loss.

    Args:
        reads: The tokens of each text.
        field: The request's field that holds the list; a text is named ``classes.3``.
    """
    found = []
    cut = [place for place, read in enumerate(reads) if read.is_cut]
    if cut:
        longest = max(cut, key=lambda place: reads[place].total)
        kept, total = len(reads[longest].ids), reads[longest].total
        others = f" {len(cut) - 1} more of {field} were cut, too." if len(cut) > 1 else ""
        message = f"{field}.{longest} was cut to {kept:,} tokens; it has {total:,}.{others}"
        found.append(ItemWarning(WarningCode.TEXT_CUT, message))
    foreign = [place for place, read in enumerate(reads) if read.is_foreign]
    if foreign:
        first = reads[foreign[0]]
        message = (
            f"{first.unknown:,} of the {len(first.ids) - first.special:,} tokens of {field}.{foreign[0]} "
            "are unknown to the model"
        )
        more = f", and some of {len(foreign) - 1} more texts." if len(foreign) > 1 else "."
        found.append(ItemWarning(WarningCode.TEXT_UNKNOWN, message + more))
    return found


def unknown_id_of(tokenizer: Any) -> int | None:
    """The id that a ``Tokenizer`` of the library ``tokenizers`` gives to what it does not know, if any."""
    model = tokenizer.model
    number = getattr(model, "unk_id", None)
    if number is not None:
        return int(number)
    token = getattr(model, "unk_token", None)
    found: int | None = tokenizer.token_to_id(token) if token else None
    return found
