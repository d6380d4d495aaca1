"""The output of ``backfill``: its progress, and its summary."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import typer
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn
from rich.text import Text

from modelmill.client.backfill import Stats, Summary
from modelmill.formats.names import shown
from modelmill_cli.console import err, out

LINE_EVERY_S = 10.0
"""The time between two lines about the progress, if the output is not a terminal."""


class Display:
    """The progress: live on a terminal, otherwise a line every ten seconds. Use it as a context."""

    def __init__(self, title: str, *, is_quiet: bool) -> None:
        self._progress = Progress(
            BarColumn(bar_width=None), TaskProgressColumn(), MofNCompleteColumn(), console=err
        )
        self._row = self._progress.add_task(title, total=None)
        self._title = title
        self._live: Live | None = None
        self._is_quiet = is_quiet
        self._line_at = time.monotonic() + LINE_EVERY_S
        self._notes = 0
        self._is_waiting = False
        self.done = 0

    def __enter__(self) -> Display:
        if err.is_terminal and not self._is_quiet:
            self._live = Live(console=err, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, stats: Stats) -> None:
        """Shows how far the run is. Called a few times per second."""
        self.done = stats.done
        for note in () if self._is_quiet else stats.notes[self._notes :]:
            err.say(note)
            self._notes += 1
        # A run that begins to wait says so at once.
        begins_to_wait = bool(stats.trouble) and not self._is_waiting
        self._is_waiting = bool(stats.trouble)
        if self._live is not None:
            self._progress.update(self._row, completed=stats.done, total=stats.total)
            self._live.update(Group(Text(self._title, style="bold"), self._progress, _details(stats)))
            self._live.refresh()
        elif not self._is_quiet and (begins_to_wait or time.monotonic() >= self._line_at):
            self._line_at = time.monotonic() + LINE_EVERY_S
            err.say(_details(stats, with_done=True))


def _details(stats: Stats, *, with_done: bool = False) -> Text:
    parts = []
    if with_done:
        parts.append(f"{stats.done:,} of {stats.total:,} rows" if stats.total else f"{stats.done:,} rows")
    parts += [f"{stats.failed:,} failed", f"{_rate(stats.rate)} rows/s", f"{stats.in_flight:,} in flight"]
    if stats.retried:
        parts.append(f"{stats.retried:,} retried")
    if stats.eta_s is not None:
        parts.append(f"{_time(stats.eta_s)} left")
    text = Text(" · ".join(parts))
    if stats.errors:
        most = sorted(stats.errors.items(), key=lambda item: -item[1])[:5]
        text.append("\nerrors: " + ", ".join(f"{code} {count:,}" for code, count in most), style="red")
    if stats.warnings:
        most = sorted(stats.warnings.items(), key=lambda item: -item[1])[:5]
        text.append("\nwarnings: " + ", ".join(f"{code} {count:,}" for code, count in most), style="yellow")
    if stats.trouble:
        text.append(f"\nwaiting: {stats.trouble}", style="yellow")
    return text


def show_summary(summary: Summary, *, as_json: bool) -> None:
    """Prints how the run ended."""
    if as_json:
        document: dict[str, Any] = summary.as_data()
        typer.echo(json.dumps(document, indent=2 if sys.stdout.isatty() else None))
        return
    if summary.state != "complete":
        err.say(
            ("stopped", "red"),
            f": {summary.reason}. The finished rows are in {shown(summary.output)}. To continue, run the "
            "same command with --resume; you may change --max-error-rate.",
        )
    failed = f", {summary.failed:,} failed" if summary.failed else ""
    out.say(
        f"{summary.rows:,} rows{failed}, in {_time(summary.seconds)} ({_rate(summary.rows_per_s)} rows/s): "
        f"{shown(summary.output)}"
    )
    if not summary.rows:
        out.say("  the input has no rows")
    for code, count in sorted(summary.errors.items(), key=lambda item: -item[1]):
        out.say(f"  {code}: {count:,}")
    for code, count in sorted(summary.warnings.items(), key=lambda item: -item[1]):
        out.say(f"  rows with the warning {code}: {count:,}")
    for reason, count in sorted(summary.skipped.items(), key=lambda item: -item[1]):
        out.say(f"  entries of the folder that were skipped ({reason}): {count:,}")


def _rate(rows_per_s: float) -> str:
    return f"{rows_per_s:,.0f}" if rows_per_s >= 10 else f"{rows_per_s:.1f}"


def _time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
