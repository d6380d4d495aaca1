"""The pages of an Ogg file. Source: RFC 3533."""

from __future__ import annotations

from dataclasses import dataclass

FIRST, LAST = 2, 4
"""Flags of a page: its stream begins, its stream ends."""
HEAD = 27
"""Bytes of a page before the lengths of its segments; the last of them says how many segments there are."""


@dataclass(frozen=True, slots=True)
class Pages:
    """What the pages show."""

    cut: bool
    """The file ends in the middle of a page."""
    ended: bool
    """The last page is marked as such."""
    chained: bool
    """A stream begins after another one has ended."""


def read_pages(data: bytes) -> Pages:
    """Goes through all pages. What is between or behind pages is skipped."""
    at, flags, ended, chained = data.find(b"OggS"), 0, False, False
    while at >= 0:
        head = data[at : at + HEAD]
        lengths = data[at + HEAD : at + HEAD + head[-1]] if len(head) == HEAD else b""
        end = at + HEAD + len(lengths) + sum(lengths)
        if len(head) < HEAD or len(lengths) < head[-1] or end > len(data):
            return Pages(cut=True, ended=False, chained=chained)
        flags = head[5]
        chained |= ended and bool(flags & FIRST)
        ended |= bool(flags & LAST)
        at = end if data[end : end + 4] == b"OggS" else data.find(b"OggS", end)
    return Pages(cut=False, ended=bool(flags & LAST), chained=chained)
