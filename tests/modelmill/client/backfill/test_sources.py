from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest

from modelmill.client.backfill import tables
from modelmill.client.backfill.rows import Row
from modelmill.client.backfill.sources import open_source
from modelmill.errors import ConfigError

parquet: Any = import_module("pyarrow.parquet")

ROWS = [{"id": number, "text": f"text {number}"} for number in range(250)]


def write_lines(path: Path) -> None:
    data = "\n\n".join(json.dumps(row) for row in ROWS).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(
            file, ["id", "text"], dialect="excel-tab" if path.suffix == ".tsv" else "excel"
        )
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    parquet.write_table(import_module("pyarrow").Table.from_pylist(ROWS), path, row_group_size=60)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_lines),
        ("rows.ndjson.gz", write_lines),
        ("rows.csv", write_csv),
        ("rows.tsv", write_csv),
        ("rows.parquet", write_parquet),
    ],
)
@pytest.mark.parametrize("start", [0, 1, 60, 249, 250, 300])
def test_a_row_has_the_same_number_wherever_reading_begins(
    tmp_path: Path, name: str, write: Any, start: int
) -> None:
    write(tmp_path / name)
    source = open_source(tmp_path / name)

    found = list(source.rows(start))

    assert [row.number for row in found] == list(range(start, 250))
    assert [(int(row.columns["id"]), row.columns["text"]) for row in found] == [
        (row["id"], row["text"]) for row in ROWS[start:]
    ]
    assert source.count() == 250
    assert source.fingerprint() == open_source(str(tmp_path / name)).fingerprint()


def test_the_fingerprint_of_another_file_is_another(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    before = open_source(path).fingerprint()

    path.write_text("{}\n{}\n")

    assert open_source(path).fingerprint() != before


def test_a_line_that_cannot_be_read_is_a_row_with_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_CHARACTERS", 40)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nnot json\n[1]\n{"a": "' + "x" * 200 + '"}\n\n{"a": 2}')

    rows = list(open_source(path).rows(0))

    assert [row.problem for row in rows] == [
        "",
        "is not valid JSON",
        "is not a JSON object",
        "is too long",
        "",
    ]
    assert rows[4].columns == {"a": 2}
    (first,) = open_source(path).firsts()
    assert first.columns == {"a": 1}


def test_csv_takes_what_spreadsheets_write(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffid,text\r\n1,"two\r\nlines, and ""quotes"""\r\n\r\n2\r\n3,a,b\r\n'.encode())

    rows = list(open_source(path).rows(0))

    assert rows[0].columns == {"id": "1", "text": 'two\r\nlines, and "quotes"'}
    assert rows[1].columns == {"id": "2"}
    assert rows[2].problem == "has 3 values, but there are 2 columns"
    assert all(row.is_text for row in rows)


@pytest.mark.parametrize(("data", "match"), [(b"a,a\n1,2\n", "same name"), (b"a\n\xff\xfe\n", "not UTF-8")])
def test_csv_that_is_none_is_told(tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(data)

    with pytest.raises(ConfigError, match=match):
        list(open_source(path).rows(0))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.jpg", "a/z.jpg", "a/b/c.jpg", "a/b/d.png", ".hidden/e.jpg", "a/.f.jpg", "x[1]/g.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "photos" / "a" / "round").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "photos" / "a" / "b")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths_of(given: Any, folder: Path) -> list[str]:
    source = open_source(given)
    source.prepare(folder)
    assert source.is_files
    rows = list(source.rows(0))
    assert source.count() == len(rows)
    assert [row.number for row in rows] == list(range(len(rows)))
    return [row.columns["path"] for row in rows]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.jpg", ["b.jpg"]),
        ("photos/**/*.jpg", ["a/b/c.jpg", "a/z.jpg", "b.jpg", "link/c.jpg", "x[1]/g.jpg"]),
        ("photos/a/?.jpg", ["a/z.jpg"]),
        ("photos/*/*.jpg", ["a/z.jpg", "link/c.jpg", "x[1]/g.jpg"]),
        ("photos/.hidden/*", [".hidden/e.jpg"]),
        ("photos/a/b/**", ["a/b/c.jpg", "a/b/d.png"]),
        ("photos/b.jpg", ["b.jpg"]),
        ("photos/link", ["link/c.jpg", "link/d.png"]),
        ("photos/x[1]", ["x[1]/g.jpg"]),
        ("photos", ["a/b/c.jpg", "a/b/d.png", "a/z.jpg", "b.jpg", "link/c.jpg", "link/d.png", "x[1]/g.jpg"]),
    ],
)
def test_a_pattern_finds_files_in_order_and_not_in_circles(
    photos: Path, pattern: str, expected: list[str]
) -> None:
    assert paths_of(pattern, photos) == [f"photos/{name}" for name in expected]


def test_an_absolute_pattern_gives_absolute_paths(photos: Path) -> None:
    assert paths_of(f"{photos}/photos/a/*.jpg", photos) == [f"{photos}/photos/a/z.jpg"]


def test_which_files_they_are_is_settled_when_the_run_begins(photos: Path) -> None:
    pattern = "photos/a/**/*.png"
    before = paths_of(pattern, photos)
    (photos / "photos" / "a" / "a.png").touch()

    assert paths_of(pattern, photos) == before


def test_several_inputs_are_read_one_after_the_other(photos: Path) -> None:
    write_lines(photos / "rows.jsonl")
    source = open_source(["photos/**/*.png", "rows.jsonl", "photos/b.jpg"])
    source.prepare(photos)

    rows = list(source.rows(0))

    assert [row.number for row in rows] == list(range(253))
    assert source.count() == 253
    assert rows[252].columns == {"path": "photos/b.jpg"}
    for start in (1, 2, 251, 252, 253):
        assert [row.columns for row in source.rows(start)] == [row.columns for row in rows[start:]]


@pytest.mark.parametrize(
    ("given", "match"), [("nothing.jsonl", "no file or folder"), ("nothing/*.jpg", "no file matches")]
)
def test_an_input_that_is_not_there_is_told(photos: Path, given: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        open_source(given).prepare(photos)

    assert not list(photos.glob("files-*"))


def test_rows_of_a_program_are_looked_at_without_being_lost() -> None:
    def generated() -> Iterator[dict[str, int]]:
        yield from ({"id": number} for number in range(3))

    source = open_source(generated())

    (first,) = source.firsts()
    assert first.columns == {"id": 0}
    assert source.count() is None
    assert [row.columns["id"] for row in source.rows(0)] == [0, 1, 2]
    assert open_source([{"id": 1}]).count() == 1
    with pytest.raises(ConfigError, match="row 1 is a str"):
        list(open_source(cast("Any", [{"id": 1}, "text"])).rows(0))


def test_an_input_without_rows_has_no_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.touch()

    assert open_source(path).firsts() == []
    assert list(open_source(path).rows(0)) == []
    assert isinstance(Row(0, {}).keep, dict)
