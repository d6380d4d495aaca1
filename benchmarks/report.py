"""The results of a measurement, and how they are shown."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Cell = str | int | float


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one comparison."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One promised figure and its target."""

    name: str
    value: float
    unit: str
    """``times``, ``ms``, ``bytes``, …"""
    target: float
    at_least: bool
    """Whether the target is a lower bound; otherwise it is an upper one."""

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the report."""

    title: str
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured."""

    rounds: int = 5
    scale: float = 1.0
    """Counts of jobs are multiplied by this; below 1 for a quick look, whose figures mean little."""

    def count(self, jobs: int) -> int:
        """``jobs``, scaled; at least 20."""
        return max(20, round(jobs * self.scale))


def hardware() -> str:
    """The machine, in a line."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else ""
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} cores ({model or platform.machine()}), {memory_gib:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def markdown(sections: Sequence[Section]) -> str:
    """The sections as Markdown."""
    parts = []
    for section in sections:
        parts.append(f"## {section.title}\n")
        parts += [f"{note}\n" for note in section.notes]
        parts += [_table(table) for table in section.tables]
        if section.figures:
            rows = [
                (
                    figure.name,
                    f"{_text(figure.value)} {figure.unit}",
                    f"{'≥' if figure.at_least else '≤'} {_text(figure.target)}",
                    "yes" if figure.met else "no",
                )
                for figure in section.figures
            ]
            parts.append(_table(Table("Against the targets", ("figure", "measured", "target", "met"), rows)))
    return "\n".join(parts)


def _table(table: Table) -> str:
    lines = [f"**{table.title}**\n", _row(table.columns), _row(["---"] * len(table.columns))]
    return "\n".join([*lines, *map(_row, table.rows)]) + "\n"


def _row(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join(map(_text, cells)) + " |"


def _text(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell
