"""What becomes of rows: refusals, warnings, and what the output cannot hold."""

from __future__ import annotations

from importlib import import_module
from math import nan
from pathlib import Path
from typing import Any

import pytest

from modelmill.errors import ConfigError
from tests.modelmill.client.backfill.stub import Stub
from tests.modelmill.client.backfill.test_engine import ROWS, outcomes, run

BAD = {"code": "invalid_input", "message": "no", "retryable": False}


@pytest.mark.parametrize(
    ("is_bad", "state", "failed"),
    [
        (lambda row: row % 2 == 0, "complete", 100),
        (lambda row: row >= 100, "complete", 100),
        (lambda row: row < 100, "stopped", 100),
        (lambda _: True, "stopped", 100),
    ],
)
def test_refusals_that_end_first_are_judged_in_the_order_of_the_rows(
    stub: Stub, tmp_path: Path, is_bad: Any, state: str, failed: int
) -> None:
    stub.on_line = lambda fields: BAD if is_bad(int(fields["text"])) else None

    summary = run(stub, tmp_path, ROWS[:200], max_error_rate=0.6)

    assert (summary.state, summary.failed) == (state, failed)
    if state == "stopped":
        assert summary.reason.startswith("100 of the first 100 rows failed")


def test_warnings_are_written_with_their_rows_and_counted(stub: Stub, tmp_path: Path) -> None:
    cut = {"item": 0, "code": "text_cut", "message": "The text was cut to 256 tokens."}
    more = {"item": None, "code": "more_warnings", "message": "There are more."}

    def end(fields: dict[str, Any]) -> dict[str, Any] | None:
        number = int(fields["text"])
        if number == 4:
            return {"status": "failed", "error": {**BAD, "code": "inference_failed"}, "warnings": [cut]}
        result = {"embedding": [float(number)]}
        given = {1: [cut], 2: [cut, {**cut, "message": "Twice."}, more], 3: []}.get(number)
        return {"status": "complete", "result": result, **({} if given is None else {"warnings": given})}

    stub.on_end = end

    summary = run(stub, tmp_path / "a", ROWS[:6], key="rows")
    run(stub, tmp_path / "b", ROWS[:6], output_format="parquet")

    found = outcomes(tmp_path / "a")
    named = {"code": "text_cut", "message": "The text was cut to 256 tokens."}
    expected = {
        1: [named],
        2: [named, {**named, "message": "Twice."}, {"code": "more_warnings", "message": "There are more."}],
        4: [named],
    }
    assert {number: row["warnings"] for number, row in found.items() if "warnings" in row} == expected
    assert summary.warnings == {"text_cut": 3, "more_warnings": 1}
    assert summary.as_data()["warnings"] == summary.warnings
    table = import_module("pyarrow.parquet").read_table(tmp_path / "b" / "part-00000.parquet").to_pylist()
    assert {row["row"]: row["warnings"] for row in table if row["warnings"]} == expected
    # A run that is complete knows them from its manifest.
    assert run(stub, tmp_path / "a", ROWS[:6], key="rows", resume=True).warnings == summary.warnings


def test_half_of_a_character_fails_its_row_alone(stub: Stub, tmp_path: Path) -> None:
    rows = [
        {"text": "0"},
        {"text": "\ud83d"},
        {"text": "\U0001f642"},
        {"text": "3", "note": "\ud83d", "x": nan},
    ]

    run(stub, tmp_path, rows)

    found = outcomes(tmp_path)
    assert found[1]["error"]["message"] == "The row holds half of a character."
    assert [found[number]["status"] for number in (0, 2, 3)] == ["complete"] * 3
    assert found[2]["result"] == {"embedding": ["\U0001f642"]}
    assert found[3]["input"] == {"note": "\\ud83d", "x": "nan"}


def test_results_that_fit_no_parquet_file_end_the_run_with_a_sentence(stub: Stub, tmp_path: Path) -> None:
    stub.on_end = lambda _: {"status": "complete", "result": {"embedding": [{"no": "number"}]}}

    for _ in range(2):
        with pytest.raises(ConfigError, match=r"do not fit into a Parquet file: .* They are safe there"):
            run(stub, tmp_path, ROWS[:3], output_format="parquet", key="rows", resume=True)

    assert len((tmp_path / "part-00000.jsonl").read_text().splitlines()) == 3
