"""``python -m benchmarks``: prints the tables of ``docs/benchmarks.md``. All by ``make bench``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import gpu, growth, idle, memory, overhead, real, start
from benchmarks.report import Options, Section, hardware, markdown

SECTIONS: dict[str, Callable[[Options], Section]] = {
    "overhead": overhead.measure,
    "real": real.measure,
    "idle": idle.measure,
    "growth": growth.measure,
    "start": start.measure,
    "memory": memory.measure,
    "gpu": gpu.measure,
}


def main(
    sections: Annotated[list[str] | None, typer.Argument(help="Which; all when none is named.")] = None,
    rounds: Annotated[
        int, typer.Option(help="Turns of each system; medians of fewer than 5 say little.")
    ] = 5,
    scale: Annotated[float, typer.Option(help="Counts of jobs are multiplied by this.")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="Also write the tables to this file.")] = None,
) -> None:
    """Measure Modelmill and what people would use instead, on the same work in one run."""
    if unknown := [name for name in sections or () if name not in SECTIONS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: there is {', '.join(SECTIONS)}.")
    options = Options(rounds, scale)
    text = f"{hardware()}; {rounds} rounds, in turns; {time.strftime('%Y-%m-%d')}.\n"
    print(text)
    for name in sections or SECTIONS:
        print(f"measuring: {name}", file=sys.stderr)
        part = markdown([SECTIONS[name](options)])
        print(part, flush=True)
        text += f"\n{part}"
        if output is not None:
            # After each section: a run takes half an hour.
            output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
