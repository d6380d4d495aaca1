"""What the commands print on. Texts are shown as they are: names, paths and errors may hold brackets."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Terminal(Console):
    """A console that reads no markup and no emoji in what it is given, tables' cells included."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def say(self, *parts: str | Text | tuple[str, str]) -> None:
        """Prints a line. A part is a text, or a text and its style.

        Only a terminal gets long ones broken: elsewhere that would cut paths and addresses in two.
        """
        self.print(Text.assemble(*parts), soft_wrap=not self.is_terminal)


def make_table(*headers: str, boxed: bool = True) -> Table:
    """A table in which what is too long for its column goes on in the next line, and is not cut off.

    The first column, which names what a row is about, stays on one line: the others give way.
    """
    table = Table(pad_edge=boxed) if boxed else Table(box=None, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, overflow="fold", no_wrap=number == 0)
    return table


out = Terminal()
err = Terminal(stderr=True)
