"""Reads parts of a file by their place, so that a parser never moves through a whole file."""

from __future__ import annotations

from typing import BinaryIO


class Window:
    """A file, read by place. Reading beyond the end gives fewer bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)

    def at(self, place: int, count: int) -> bytes:
        if place >= self.size:
            return b""
        self._file.seek(place)
        return self._file.read(count)

    def number(self, place: int, count: int) -> int:
        """An unsigned number, most significant byte first."""
        return int.from_bytes(self.at(place, count), "big")
