"""The consoles of the commands. They print text as it is: names, paths and errors may hold brackets."""

from __future__ import annotations

import codecs
import io
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Terminal(Console):
    """A console that interprets neither markup nor emoji codes, not even in the cells of tables."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def say(self, *parts: str | Text | tuple[str, str]) -> None:
        """Prints a line. A part is a text, or a text and its style.

        A long line is broken only on a terminal: elsewhere, that would cut paths and URLs in two.
        """
        self.print(Text.assemble(*parts), soft_wrap=not self.is_terminal)


def make_table(*headers: str, boxed: bool = True) -> Table:
    """A table that wraps long cells and never cuts them off.

    The first column, which names the subject of a row, is never wrapped. The other columns become narrower.
    """
    table = Table(pad_edge=boxed) if boxed else Table(box=None, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, overflow="fold", no_wrap=number == 0)
    return table


def escape_what_cannot_be_shown() -> None:
    """If the terminal's encoding lacks a character, prints its escape instead of ending the command.

    The escape is that of JSON, so output that is JSON stays so.
    """
    codecs.register_error("modelmill_escape", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="modelmill_escape")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end


out = Terminal()
err = Terminal(stderr=True)
