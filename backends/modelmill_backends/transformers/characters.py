"""Whole characters from tokens that hold single bytes.

A rare character, such as an emoji, has several tokens. If a text begins or ends in the middle of one, a
tokenizer writes U+FFFD, or, if the tokens are single bytes, spoils the characters beside it as well.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

REPLACEMENT = "\ufffd"
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token of SentencePiece for one byte."""
LONGEST = 4
"""Bytes of one character in UTF-8."""


class Characters:
    """Decodes the tokens of one tokenizer. The caller holds the tokenizer's lock."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}
        self._is_byte_level = _is_byte_level(tokenizer)

    def decode(self, tokens: Sequence[int], *, whole: bool = False) -> str:
        """The text, without special tokens and without the rest of a character that has begun before it.

        Args:
            tokens: Token ids.
            whole: Leave out an incomplete character at the end, too. U+FFFD itself is a complete character.
        """
        kept = [token for token in tokens if token not in self._special]
        start = self._loose_start(kept)
        kept = kept[start:]
        drop = 0
        if whole and (pending := self._pending(kept)):
            if self._is_byte_level:
                # One token may hold the end of one character and the beginning of the next.
                drop = 1
            else:
                kept = kept[:-pending]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=True)
        return text[:-drop] if drop and text.endswith(REPLACEMENT) else text

    def _loose_start(self, tokens: Sequence[int]) -> int:
        """The number of tokens at the start that only continue a character."""
        for place, token in enumerate(tokens[: LONGEST - 1]):
            if not all(_continues(byte) for byte in self._bytes_of(token) or b"."):
                return place
        return min(LONGEST - 1, len(tokens))

    def _pending(self, tokens: Sequence[int]) -> int:
        """The number of bytes at the end that begin a character without ending it."""
        last = b""
        for token in reversed(tokens[-LONGEST:]):
            own = self._bytes_of(token)
            if own is None:
                break
            last = own + last
            if len(last) >= LONGEST:
                break
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(last)
        return len(decoder.getstate()[0])

    def _bytes_of(self, token: int) -> bytes | None:
        """The bytes that a token stands for; None if it stands for whole characters."""
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if self._is_byte_level:
            letters = _letters()
            return bytes(letters[letter] for letter in name) if letters.keys() >= set(name) else None
        match = BYTE.fullmatch(name)
        return bytes([int(match[1], 16)]) if match else None


def _continues(byte: int) -> bool:
    return 0x80 <= byte < 0xC0


def _is_byte_level(tokenizer: Any) -> bool:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is not None:
        return b'"ByteLevel"' in decoder.__getstate__()
    return hasattr(tokenizer, "byte_decoder")


@cache
def _letters() -> dict[str, int]:
    """The letters that stand for bytes in GPT-2's kind of tokenizer (``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
