from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from modelmill.client.backfill.journal import Journal, Plan
from modelmill.client.backfill.stats import Stats
from modelmill.errors import ConfigError

parquet: Any = import_module("pyarrow.parquet")

RESULT = {"type": "object", "properties": {"scores": {"type": "array", "items": {"type": "number"}}}}
PLAN = Plan("task", "model", {"path": "rows.jsonl"}, {"lane": "bulk"})


def line(row: int) -> bytes:
    result = {"scores": [row, 0.5]}
    document = {"row": row, "input": {"id": row}, "status": "complete", "result": result, "job_id": str(row)}
    return json.dumps(document).encode() + b"\n"


@contextmanager
def journal(
    folder: Path, *, resume: bool = True, plan: Plan = PLAN, shard_rows: int = 3
) -> Iterator[tuple[Journal, Stats]]:
    stats = Stats()
    with closing(Journal(folder, plan, RESULT, shard_rows)) as opened:
        opened.open(stats, resume=resume)
        if not opened.is_complete:
            opened.begin(stats)
        yield opened, stats


def write(opened: Journal, stats: Stats, *rows: int) -> None:
    for row in rows:
        opened.write(line(row))
        stats.complete += 1


def commit(opened: Journal, stats: Stats, next_row: int, *pending: int) -> None:
    opened.commit(opened.snapshot(next_row, pending, stats), stats)


def rows_in(folder: Path) -> list[int]:
    shards = sorted(folder.glob("part-*.jsonl"))
    return [json.loads(text)["row"] for shard in shards for text in shard.read_text().splitlines()]


def test_rows_that_no_checkpoint_covers_are_cut_off(tmp_path: Path) -> None:
    with journal(tmp_path) as (opened, stats):
        write(opened, stats, 0, 2)
        commit(opened, stats, 3, 1)
        write(opened, stats, 1, 3)
        run_id = opened.run_id

    with journal(tmp_path) as (opened, stats):
        assert opened.run_id == run_id
        assert (opened.next_row, opened.pending) == (3, frozenset({1}))
        assert (stats.done, stats.resumed_at) == (2, 2)
        write(opened, stats, 1, 3)
        commit(opened, stats, 4)
        opened.end("complete", stats)

    assert rows_in(tmp_path) == [0, 2, 1, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        "part-00000.jsonl",
        "part-00001.jsonl",
    ]


def test_a_crash_before_the_first_checkpoint_leaves_nothing_done(tmp_path: Path) -> None:
    with journal(tmp_path) as (opened, stats):
        write(opened, stats, 0, 1, 2, 3, 4)

    with journal(tmp_path) as (opened, stats):
        assert (opened.next_row, stats.done) == (0, 0)
        opened.end("complete", stats)

    assert rows_in(tmp_path) == []


@pytest.mark.parametrize("crash", ["before_seal", "after_seal", "after_manifest"])
@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
def test_a_crash_while_a_shard_is_ended_loses_and_doubles_nothing(
    tmp_path: Path, crash: str, output_format: str
) -> None:
    plan = Plan("task", "model", {}, {}, output_format)
    with journal(tmp_path, plan=plan) as (opened, stats):
        write(opened, stats, 0, 1)
        commit(opened, stats, 2)
        write(opened, stats, 2, 3)
        snapshot = opened.snapshot(4, [], stats)
        if crash != "before_seal":
            opened._seal(snapshot.ended[0])
        if crash == "after_manifest":
            opened._write_manifest("running", stats)

    with journal(tmp_path, plan=plan) as (opened, stats):
        assert opened.next_row == 2
        assert opened.shards == []
        write(opened, stats, 2, 3)
        commit(opened, stats, 4)
        opened.end("complete", stats)

    assert [shard["rows"] for shard in opened.shards] == [3, 1]
    names = [shard["name"] for shard in opened.shards]
    assert sorted(path.name for path in tmp_path.glob("part*")) == names
    if output_format == "jsonl":
        assert rows_in(tmp_path) == [0, 1, 2, 3]
    else:
        tables = [parquet.read_table(tmp_path / name).to_pylist() for name in names]
        assert [row["row"] for table in tables for row in table] == [0, 1, 2, 3]


def test_the_manifest_says_what_is_in_the_shards(tmp_path: Path) -> None:
    with journal(tmp_path) as (opened, stats):
        write(opened, stats, 0, 1, 2, 3)
        commit(opened, stats, 4)
        opened.end("complete", stats)

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["state"] == "complete"
    assert (manifest["rows"], manifest["complete"], manifest["failed"]) == (4, 4, 0)
    assert (manifest["task"], manifest["model"]) == ("task", "model")
    for shard in manifest["shards"]:
        data = (tmp_path / shard["name"]).read_bytes()
        assert shard["bytes"] == len(data)
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    with journal(tmp_path) as (opened, stats):
        assert opened.is_complete
        assert stats.done == 4


def test_parquet_has_the_result_as_the_contract_says(tmp_path: Path) -> None:
    failed: dict[str, Any] = {
        "row": 1,
        "input": {},
        "status": "failed",
        "error": {"code": "internal", "message": "no", "retryable": False, "deliveries": 2},
        "job_id": None,
    }
    with journal(tmp_path, plan=Plan("task", "model", {}, {}, "parquet")) as (opened, stats):
        write(opened, stats, 0)
        opened.write(json.dumps(failed).encode() + b"\n")
        commit(opened, stats, 2)
        opened.end("complete", stats)

    rows = parquet.read_table(tmp_path / "part-00000.parquet").to_pylist()
    assert rows[0] == {
        "row": 0,
        "status": "complete",
        "job_id": "0",
        "input": '{"id": 0}',
        "result": {"scores": [0.0, 0.5]},
        "error": None,
        "warnings": None,
    }
    assert rows[1]["error"] == {"code": "internal", "message": "no", "retryable": False}
    assert rows[1]["result"] is None


def test_a_folder_with_a_run_is_resumed_only_when_asked(tmp_path: Path) -> None:
    with journal(tmp_path, resume=False) as (opened, stats):
        commit(opened, stats, 0)

    with (
        pytest.raises(ConfigError, match="holds a run already, which is running"),
        journal(tmp_path, resume=False),
    ):
        pass


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (Plan("other", "model", PLAN.input, PLAN.request), "another task"),
        (Plan("task", "other", PLAN.input, PLAN.request), "another model"),
        (Plan("task", "model", {"path": "others.jsonl"}, PLAN.request), "another input"),
        (Plan("task", "model", PLAN.input, {"lane": "normal"}), "another request"),
        (Plan("task", "model", PLAN.input, {"set": "x" * 5000}), "another request"),
        (Plan("task", "model", PLAN.input, PLAN.request, "parquet"), "another format"),
    ],
)
def test_a_run_that_would_do_something_else_is_refused(tmp_path: Path, plan: Plan, match: str) -> None:
    with journal(tmp_path) as (opened, stats):
        commit(opened, stats, 0)

    with pytest.raises(ConfigError, match=match), journal(tmp_path, plan=plan):
        pass


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with (
        journal(tmp_path),
        pytest.raises(ConfigError, match="another backfill writes"),
        journal(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("part-00000.jsonl", "", "part-00000.jsonl has changed since the run wrote it"),
        ("part-00001.jsonl", "", "part-00001.jsonl has changed since the run wrote it"),
        ("checkpoint.json", "{", "checkpoint.json is damaged"),
        ("manifest.json", "[]", "manifest.json is damaged"),
    ],
)
def test_output_that_was_changed_is_refused(tmp_path: Path, name: str, data: str, match: str) -> None:
    with journal(tmp_path) as (opened, stats):
        write(opened, stats, 0, 1, 2, 3)
        commit(opened, stats, 4)
    (tmp_path / name).write_text(data)

    with pytest.raises(ConfigError, match=match), journal(tmp_path):
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "part-00000.jsonl").write_text("another program's")

    with pytest.raises(ConfigError, match="holds results of something else"), journal(tmp_path):
        pass

    assert (tmp_path / "part-00000.jsonl").read_text() == "another program's"


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "new", PLAN, RESULT)) as opened:
        opened.open(Stats(), resume=False)

    assert not (tmp_path / "new").exists()
