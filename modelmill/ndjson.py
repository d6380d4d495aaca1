"""Newline-delimited JSON, as the bulk routes and their clients send it."""

from __future__ import annotations

import sys
from collections.abc import Iterator


class LineSplitter:
    """Cuts bytes into lines, at newlines only: JSON may hold other characters that end lines elsewhere.

    Lines come without surrounding white space; empty ones are left out. A line over the limit comes as None,
    and is not kept in memory.

    Args:
        limit_bytes: The longest line, without its newline.
    """

    def __init__(self, limit_bytes: int = sys.maxsize) -> None:
        self._limit_bytes = limit_bytes
        self._begun = bytearray()
        self._too_long = False

    @property
    def begun_bytes(self) -> int:
        """The size of the line that has begun."""
        return len(self._begun)

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """The lines that end in ``chunk``."""
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._add(part)
            yield from self.end()
        self._add(rest)

    def end(self) -> Iterator[bytes | None]:
        """The text after the last newline, unless it is empty."""
        if self._too_long:
            yield None
        elif line := bytes(self._begun).strip():
            yield line
        self._begun, self._too_long = bytearray(), False

    def _add(self, part: bytes) -> None:
        if self._too_long or len(self._begun) + len(part) > self._limit_bytes:
            self._begun, self._too_long = bytearray(), True
        else:
            self._begun += part
