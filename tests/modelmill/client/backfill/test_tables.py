"""Files with rows: each is read as what it is, or refused before anything is sent."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from modelmill.client.backfill import tables
from modelmill.client.backfill.options import BackfillOptions
from modelmill.client.backfill.rows import RowSource
from modelmill.client.backfill.sources import open_source
from modelmill.errors import ConfigError
from modelmill.formats.encodings import InputError

ROWS = [{"id": "0", "text": "A; cat, sleeps."}, {"id": "1", "text": "日本\u2028\nGrüße \U0001f642"}]
JSON = '{"id": "0", "text": "A; cat, sleeps."}\n{"id": "1", "text": "日本\u2028\\nGrüße \U0001f642"}\n'
ARRAY = "[" + JSON.replace("}\n{", "},\n{") + "]"
CSV = 'id,text\r\n0,"A; cat, sleeps."\r\n1,"日本\u2028\nGrüße \U0001f642"\r\n'
TSV, SEMICOLON = (
    f'id{mark}text\r\n0{mark}"A; cat, sleeps."\r\n1{mark}"日本\u2028\nGrüße \U0001f642"\r\n' for mark in "\t;"
)


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def opened(path: Path, data: bytes, **options: Any) -> RowSource:
    path.write_bytes(data)
    return open_source(path, reading=BackfillOptions(**options).reading)


def read(path: Path, data: bytes, **options: Any) -> list[Any]:
    source = opened(path, data, **options)
    source.check(10**6)
    rows = list(source.rows(0))
    assert source.count() == len(rows)
    assert [row.number for row in source.rows(1)] == [row.number for row in rows[1:]]
    return [row.problem or row.columns for row in rows]


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("rows.JSONL", JSON, {}),
        ("rows.ndjson", JSON, {}),
        ("rows.JsonLines", JSON, {}),
        ("rows.jsonl", JSON.replace("}\n", "},\r\n"), {}),
        ("rows.jsonl", JSON.replace("\n", "\r"), {}),
        ("rows.jsonl", JSON.replace("{", "{\n").replace(", ", ",\n"), {}),
        ("rows.jsonl", ARRAY, {}),
        ("rows.JSON", ARRAY, {}),
        ("rows.json", JSON, {}),
        ("rows", JSON, {}),
        ("rows.txt", JSON, {}),
        ("rows.txt", ARRAY, {}),
        ("rows.Csv", CSV, {}),
        ("rows.csv", SEMICOLON, {}),
        ("rows.csv", TSV, {}),
        ("rows.csv", "sep=;\r\n" + SEMICOLON, {}),
        ("rows.csv", CSV.replace("id,text", " id , text"), {}),
        ("rows.TSV", TSV, {}),
        ("rows.tab", TSV, {}),
        ("rows.dat", TSV, {"input_format": "tsv"}),
        ("rows", SEMICOLON, {"input_format": "csv", "delimiter": ";"}),
    ],
)
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_as_what_it_is(
    tmp_path: Path, name: str, data: str, options: dict[str, str], codec: str
) -> None:
    expected = ROWS
    if "{\n" in data:  # the text of a value is the same, with a line end for a space
        expected = [{"id": "0", "text": "A; cat,\nsleeps."}, ROWS[1]]
        data = data.replace("cat,\nsleeps", "cat,\\nsleeps")

    assert read(tmp_path / name, data.encode(codec), **options) == expected


def packed(data: bytes) -> bytes:
    """Packed by gzip, without the time, so that all processes of a test run collect the same tests."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["rows.JSONL.GZ", "rows.jsonl", "rows.jsonl.xz"])
def test_the_content_says_how_a_file_is_packed(tmp_path: Path, pack: Any, name: str) -> None:
    assert read(tmp_path / name, pack(JSON.encode())) == ROWS
    assert read(tmp_path / "rows.csv.gz", CSV.encode("utf-16")) == ROWS


def test_text_has_a_row_for_each_line(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", "\ufeffHello, you.\r\n\r\n日本\u2028x".encode()) == [
        {"text": "Hello, you."},
        {"text": "日本\u2028x"},
    ]


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    for name in ("rows.PARQUET", "rows.pq", "rows", "rows.csv"):
        assert read(tmp_path / name, parquet_of(ROWS)) == ROWS
    assert read(tmp_path / "rows.csv", b"PAR1,b\n1,2\n") == [{"PAR1": "1", "b": "2"}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl.gz", packed(JSON.encode() * 99)[:-20], r"row \d+: the packed data end too early"),
        ("a.csv.gz", packed(CSV.encode() * 99)[:-20], r"row \d+: the packed data end too early"),
        ("a.json.gz", packed(ARRAY.encode())[:-20], r"row \d+: the packed data end too early"),
        ("a.jsonl.bz2", bz2.compress(JSON.encode())[:-5], r"row \d+: the packed data end too early"),
        ("a.jsonl.xz", lzma.compress(JSON.encode())[:-5], r"row \d+: the packed data end too early"),
        ("a.jsonl.gz", packed(JSON.encode())[:-8] + bytes(8), "row 2: the packed data are damaged"),
        ("a.jsonl.gz", packed(JSON.encode()) + b"more", "row 2: other bytes follow the packed data"),
        ("a.jsonl.gz", b"", "is empty, so it is not what its name says"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\0", "is packed with zstd: unpack it first"),
        ("a.csv", b"PK\x03\x04\x14\0\xff", "zip archive or an office document"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "office document: save the table as CSV"),
        ("a.tar", b"a" + bytes(256) + b"ustar" + bytes(99), "tar archive"),
        ("a.parquet", b"a,b\n", "is not a Parquet file"),
        ("a.parquet", parquet_of(ROWS)[:-9], "row 0: the Parquet file is damaged or cut off"),
        ("a.parquet.gz", packed(parquet_of(ROWS)), "packed Parquet file: unpack it first"),
        ("a.json", b'[{"a": 1}, {"a"', "row 1: ends in the middle of a value"),
        ("a.json", b"[1, 2]", "row 0: is not a JSON object, like the rows after it"),
        ("a.jsonl", b"id,text\n1,a\n", "row 0: is not valid JSON, like the rows after it"),
        ("a.jsonl", JSON.encode("utf-16-le"), "line 1, byte 2: a NUL character"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "line 2, byte 8: is not UTF-8"),
        ("a.csv", "id,text\n1,Größe\n".encode("cp1252"), "line 2, byte 5: is not UTF-8"),
        ("a.txt", "日本\n".encode("gbk"), "a.txt"),
        ("a.csv", b'id,text\n1,a\n2,"b\n3,c\n', "line 3: a quote begins a value and is not closed"),
        ("a.csv", b'id,text\n1,a\n2,"b\n3,c"d\n4,e\n', "lines 3 to 4: ',' expected after"),
        ("a.csv", b'"i"d,t\na,b\n', "the header is not valid CSV"),
        ("a.csv", b"a,b,a\n1,2,3\n", "header: two columns have the same name, 'a'"),
        ("a.csv", b"a,b;c\n1,2;3\n", "separated by , or ;: say which with --delimiter"),
        ("rows", b"id,text\n1,a\n", "does not say what its rows are: give --input-format"),
        ("rows.txt", b"id\ttext\n1\ta\n", "does not say what its rows are: give --input-format"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_the_place(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    def prepare() -> None:
        source = opened(tmp_path / name, data)
        source.prepare(tmp_path)
        source.check(10**6)
        source.firsts()

    with pytest.raises(InputError, match=message) as caught:
        prepare()

    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_before_a_cut_are_read(tmp_path: Path) -> None:
    lines = "".join(f'{{"id": {number}, "noise": "{os.urandom(40).hex()}"}}\n' for number in range(3000))
    source = opened(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode())[:-30_000])
    numbers: list[int] = []

    def read_all() -> None:
        for row in source.rows(0):
            numbers.append(row.columns["id"])

    with pytest.raises(InputError, match=r"row \d+: the packed data end too early") as caught:
        read_all()

    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 1000
    assert f"row {len(numbers)}:" in str(caught.value)
    assert caught.value.is_cut


def test_a_row_that_is_wrong_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_CHARACTERS", 40)

    assert read(tmp_path / "a.jsonl", b'{"a": 1}\n# no\n[1]\n{"a": "' + b"x" * 200 + b'"}\n{"a": 2') == [
        {"a": 1},
        "is not valid JSON",
        "is not a JSON object",
        "is too long",
        "is not valid JSON. No line end follows: the file may be cut off",
    ]
    assert read(tmp_path / "a.json", b'[{"a": 1}, {"a": "' + b"x" * 200 + b'"}, 3, {"a": 2}]') == [
        {"a": 1},
        "is too long",
        "is not a JSON object",
        {"a": 2},
    ]
    assert read(tmp_path / "a.csv", b'id,text\n1,a,b\n2,"c"d\n3\n\n4,e,\n') == [
        "has 3 values, but there are 2 columns",
        "is not valid CSV: in line 3, ',' expected after '\"'",
        {"id": "3"},
        {"id": "4", "text": "e"},
    ]
    with pytest.raises(InputError, match="line 2: is too long"):
        read(tmp_path / "b.csv", b"id,text\n1," + b"x" * 50 + b"\n")


def test_a_header_alone_is_no_row(tmp_path: Path) -> None:
    for data in (b"id,text\n", b"id;text", b"\xef\xbb\xbf", b""):
        assert read(tmp_path / "a.csv", data) == []


def test_a_folder_or_pattern_of_tables_is_read_as_tables(tmp_path: Path) -> None:
    for name, data in (("b.CSV", CSV), ("a.jsonl", JSON)):
        (tmp_path / name).write_text(data, encoding="utf-8", newline="")
    for given in (tmp_path, f"{tmp_path}/*"):
        source = open_source(given)
        assert not source.is_files
        assert [row.columns for row in source.rows(0)] == ROWS + ROWS
    assert [row.columns for row in open_source(f"{tmp_path}/*.CSV").rows(0)] == ROWS

    (tmp_path / "photo.JPG").write_bytes(b"\xff\xd8\xff")

    assert open_source(tmp_path).is_files
    assert not open_source(f"{tmp_path}/*[lV]").is_files


def test_single_media_files_are_rows_whatever_their_case(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.HEIC", "c.webm", "d.M4A", "e.avif", "f.opus", "g"):
        source = opened(tmp_path / name, b"\x89\x00\xff\xd8")
        source.prepare(tmp_path)
        assert [row.columns for row in source.rows(0)] == [{"path": str(tmp_path / name)}]
        (tmp_path / "files-0.list").unlink()


def test_a_pipe_is_copied_and_read(tmp_path: Path) -> None:
    pipe, output = tmp_path / "pipe", tmp_path / "out"
    output.mkdir()
    os.mkfifo(pipe)

    def prepared(data: bytes) -> RowSource:
        writer = threading.Thread(target=pipe.write_bytes, args=(data,))
        writer.start()
        try:
            source = open_source(pipe)
            source.prepare(output)
        finally:
            writer.join()
        return source

    for data in (JSON.encode("utf-16"), b""):  # a resumed run may be given nothing
        source = prepared(data)
        assert [row.columns for row in source.rows(0)] == ROWS
        assert source.count() == 2
    for data in (JSON.encode(), JSON.encode("utf-16") + b"\n\0", JSON.encode("utf-16")[:-2]):
        with pytest.raises(ConfigError, match=r"pipe holds (other|fewer) rows than"):
            prepared(data)


def test_the_text_encoding_may_be_said(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", "日本".encode("gbk"), encoding="gbk") == [{"text": "日本"}]
    assert read(tmp_path / "a.csv", "id,text\n1,日本".encode("shift_jis"), encoding="shift_jis") == [
        {"id": "1", "text": "日本"}
    ]
    assert read(tmp_path / "a", JSON.encode("utf-16-le"), encoding="utf-16-le") == ROWS


def test_unknown_settings_are_refused() -> None:
    refused: list[dict[str, Any]] = [{"encoding": "nope"}, {"delimiter": "ab"}, {"input_format": "xml"}]
    for options in refused:
        with pytest.raises(ConfigError):
            BackfillOptions(**options)
