"""Tables and figures of a benchmark run."""

from __future__ import annotations

from benchmarks.report import Figure, Options, Section, Table, hardware, markdown


def test_a_figure_says_whether_its_target_is_met() -> None:
    assert Figure("speed", 8.0, "times", 8, at_least=True).met
    assert not Figure("speed", 7.9, "times", 8, at_least=True).met
    assert Figure("delay", 5.0, "ms", 5, at_least=False).met
    assert not Figure("delay", 5.1, "ms", 5, at_least=False).met


def test_sections_are_shown_as_markdown() -> None:
    section = Section(
        "Growth",
        [Table("by depth", ("queued", "µs"), [(1000, 12.345), ("all", 12345.6)])],
        [Figure("submit", 1.16, "times", 1.2, at_least=False)],
        ["A note."],
    )
    lines = markdown([section]).splitlines()
    assert lines[0] == "## Growth"
    assert "A note." in lines
    assert "| 1,000 | 12.3 |" in lines
    assert "| all | 12,346 |" in lines
    assert "| submit | 1.16 times | ≤ 1.2 | yes |" in lines


def test_counts_are_scaled_and_never_too_few_to_measure() -> None:
    assert Options(scale=0.1).count(2000) == 200
    assert Options(scale=0.001).count(2000) == 20


def test_the_machine_is_named() -> None:
    assert "cores" in hardware()
