"""Folders hold more than photographs: odd names, links in circles, pipes."""

from __future__ import annotations

import inspect
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from modelmill.client.backfill import BackfillOptions, Summary, backfill
from modelmill.client.backfill.sources import open_source
from modelmill.client.wire import Connection
from modelmill.errors import ConfigError, ModelmillError
from tests.modelmill.client.backfill.stub import Stub, refused

TASK = "zero-shot-image-classification"
NAMES = {
    b"a.JPG": "a.JPG",
    b"b\xff.png": r"b\xff.png",
    rb"b\xff.png": r"b\\xff.png",
    b"c\n\x1b[31m.heic": "c\n\x1b[31m.heic",
    b"-rf.avif": "-rf.avif",
    b"[x]*?.webm": "[x]*?.webm",
    b"data:,x.png": "data:,x.png",
    b"z" * 251 + b".png": "z" * 251 + ".png",
    "日本.opus".encode(): "日本.opus",
    "\u2028.png".encode(): "\u2028.png",
}


def run(stub: Stub, rows: Any, output: Path, **options: Any) -> Summary:
    stub.on_end = lambda _: {"status": "complete", "result": {"probabilities": [0.5, 0.5]}}
    how = BackfillOptions(set={"classes": ["cat", "dog"]}, resume=True, **options)
    where = Connection.make(stub.url, timeout_s=10.0)
    return backfill(where, TASK, "stub", rows, output=output, options=how)


def inputs(output: Path) -> list[dict[str, Any]]:
    """The inputs in the order of their rows."""
    found: dict[int, dict[str, Any]] = {}
    for shard in output.glob("part-*.jsonl"):
        for line in shard.read_text(encoding="utf-8").split("\n")[:-1]:
            row = json.loads(line)
            assert row["status"] == "complete", row
            found[row["row"]] = row["input"]
    for shard in output.glob("part-*.parquet"):
        for row in import_module("pyarrow.parquet").read_table(shard).to_pylist():
            assert row["status"] == "complete", row
            found[row["row"]] = json.loads(row["input"])
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
@pytest.mark.parametrize("is_resumed", [False, True])
def test_files_with_odd_names_are_rows_with_readable_names(
    stub: Stub, tmp_path: Path, output_format: Any, is_resumed: bool
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in NAMES:
        (folder / os.fsdecode(name)).write_bytes(b"\xff\xd8" + name)
    if is_resumed:
        stub.on_request = lambda asked: refused(403, "forbidden") if asked == "collect" else None
        with pytest.raises(ModelmillError):
            run(stub, folder, tmp_path / "out", output_format=output_format)
        stub.on_request = lambda _: None

    summary = run(stub, folder, tmp_path / "out", output_format=output_format)

    assert (summary.state, summary.rows, summary.failed) == ("complete", len(NAMES), 0)
    written = [row["path"] for row in inputs(tmp_path / "out")]
    assert sorted(written) == sorted(f"{folder}/{name}" for name in NAMES.values())
    assert len(stub.by_key) == len(NAMES)


def test_a_name_that_looks_like_a_url_is_a_file(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data:,x.png").write_bytes(b"\xff\xd8")

    run(stub, "*.png", tmp_path / "out")

    assert inputs(tmp_path / "out") == [{"path": "./data:,x.png"}]


def test_a_file_whose_name_is_no_text_and_that_is_gone_fails_alone(stub: Stub, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    gone = folder / os.fsdecode(b"b\xff.png")
    for path in (folder / "a.png", gone):
        path.write_bytes(b"\xff\xd8")
    stub.on_line = lambda _: gone.unlink(missing_ok=True)
    summary = run(stub, [folder / "a.png", folder], tmp_path / "out", window=1, output_format="parquet")

    rows = import_module("pyarrow.parquet").read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert (summary.rows, summary.failed) == (3, 1)
    assert failed["error"]["code"] == "media_not_found"
    assert r"b\xff.png" in failed["error"]["message"]
    assert json.loads(failed["input"]) == {"path": f"{folder}/b\\xff.png"}


def test_what_is_no_file_is_skipped_with_a_word(stub: Stub, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    for path in (folder / "a.png", folder / "deep" / "er" / "b.png", outside / "c.png"):
        path.write_bytes(b"\xff\xd8")
    (folder / "self.png").symlink_to("self.png")
    (folder / "nothing.png").symlink_to("gone.png")
    (folder / "up").symlink_to("..")
    (folder / "deep" / "er" / "round").symlink_to(folder / "deep")
    (folder / "out").symlink_to(outside)
    (folder / "link.png").symlink_to(outside / "c.png")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "sock.png"))
        told: list[str] = []

        summary = run(
            stub, f"{folder}/**", tmp_path / "out", on_progress=lambda stats: told.extend(stats.notes)
        )

    names = [str(Path(row["path"]).relative_to(folder)) for row in inputs(tmp_path / "out")]
    assert names == ["a.png", "deep/er/b.png", "link.png", "out/c.png", "up/outside/c.png"]
    expected = {
        "a link onto itself": 1,
        "a link to nothing": 1,
        "a named pipe": 1,
        "a socket": 1,
        "it leads back to a folder above it": 2,
        "the results are written there": 1,
    }
    assert summary.skipped == expected
    assert f"skipped {folder}/self.png: a link onto itself" in told
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"] == expected
    # A run that is complete knows them from its manifest.
    assert run(stub, f"{folder}/**", tmp_path / "out").skipped == expected


def test_the_results_are_no_input(stub: Stub, tmp_path: Path) -> None:
    stub.on_end = lambda _: None
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    options = BackfillOptions(resume=True)
    where = Connection.make(stub.url, timeout_s=10.0)
    for _ in range(2):
        summary = backfill(
            where,
            "text-embedding",
            "stub",
            f"{tmp_path}/**/*.jsonl",
            output=tmp_path / "out",
            options=options,
        )
        assert summary.rows == 1
    (tmp_path / "a.png").touch()
    with pytest.raises(ConfigError, match="is the input: choose another folder"):
        run(stub, tmp_path, tmp_path)


def test_only_what_matches_is_spoken_of(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "loop").symlink_to("loop")
    source = open_source(f"{tmp_path}/*.png")

    source.prepare(tmp_path)

    assert (source.count(), source.skipped) == (1, [])


def test_a_folder_of_nothing_but_circles_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "loop.png").symlink_to("loop.png")

    with pytest.raises(ConfigError, match=r"no file matches .*loop.png: a link onto itself"):
        open_source(folder).prepare(tmp_path)
    with pytest.raises(ConfigError, match=r"loop\.png"):
        open_source(folder / "loop.png")
    with pytest.raises(ConfigError, match="is neither a file nor a folder nor a pipe"):
        open_source("/dev/null")


def test_folders_may_be_nested_deeply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    depth = 300
    Path("d/" * depth).mkdir(parents=True)
    Path("d/" * depth + "x.png").touch()
    source = open_source("d/**")

    with recursion_limit(200):
        source.prepare(tmp_path)

    assert [row.columns["path"] for row in source.rows(0)] == ["d/" * depth + "x.png"]


@contextmanager
def recursion_limit(more: int) -> Iterator[None]:
    """Allows so many calls inside of each other, from here on."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + more)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
