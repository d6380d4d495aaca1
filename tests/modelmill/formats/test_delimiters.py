from __future__ import annotations

import pytest

from modelmill.errors import ConfigError
from modelmill.formats.delimiters import Dialect, column_names, find_dialect, read_delimiter
from modelmill.formats.encodings import InputError


def find(text: str, *, given: str = "", is_tsv: bool = False, is_whole: bool = True) -> Dialect:
    lines = text.splitlines(keepends=True)
    return find_dialect(lines, "rows.csv", given=given, is_tsv=is_tsv, is_whole=is_whole)


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("id,text\n1,a; b\n", Dialect(",")),
        ("id;text\n1;a, b\n2;c\n", Dialect(";")),
        ("id;price;text\n1;3,50;x\n2;4,75;y\n", Dialect(";")),
        ('id;"text, all"\n1;x\n2;y\n', Dialect(";")),
        ("id\ttext\n1\ta, b\n", Dialect("\t")),
        ("id|text\n1|a,b\n", Dialect("|")),
        ("text\nHello\nBye; all\n", Dialect(",")),
        ("text\n", Dialect(",")),
        ("", Dialect(",")),
        ("id,text\n1,a,\n2,b,\n", Dialect(",")),
        ("id,text\n1\n2\n3,x\n", Dialect(",")),
        ("sep=;\nid;text\n", Dialect(";", has_sep_line=True)),
        ('"sep=|"\r\nid|te,xt\r\n', Dialect("|", has_sep_line=True)),
        ('id, text\n1, "a, b"\n', Dialect(",", skips_spaces=True)),
        ("a,b;c\n1,2;3\n4,5\n6,7\n", Dialect(",")),
    ],
)
def test_one_delimiter_that_fits_is_taken(text: str, dialect: Dialect) -> None:
    assert find(text) == dialect


def test_the_extension_decides_for_tabs() -> None:
    both = "a\tb,c\n1\t2,3\n"

    assert find(both, is_tsv=True).delimiter == "\t"
    assert find("id;text\n1;a\n", is_tsv=True).delimiter == ";"
    assert find("text\nHello, you\n", is_tsv=True).delimiter == "\t"
    with pytest.raises(InputError, match="separated by , or tab"):
        find(both)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b;c\n1,2;3\n", "rows.csv: its values may be separated by , or ;: say which with --delimiter"),
        ("a,b;c\n", "separated by , or ;"),
        ("text\nHello, you\nBye, all\n", "row 0: has 2 values, but the header has 1"),
        ("a;b\nplain\nwords\n", "row 0: has 1 values, but the header has 2"),
    ],
)
def test_what_is_not_clear_is_asked(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find(text)

    assert message in str(caught.value)
    assert "--delimiter" in str(caught.value)
    assert find(text, given=";").delimiter == ";"


def test_a_row_that_the_sample_cuts_is_not_judged() -> None:
    assert find("a,b;c\n1,2;3\n4,5\n6,7\n8,9;", is_whole=False).delimiter == ","
    assert find("id;text\n1;a, b\n2;c\n3", is_whole=False).delimiter == ";"


def test_delimiters_have_names() -> None:
    assert [read_delimiter(text) for text in ("", ",", "tab", r"\t", "\t", "Semicolon")] == [
        *("", ",", "\t", "\t", "\t", ";")
    ]
    for text in ("ab", '"', "\n"):
        with pytest.raises(ConfigError, match="not one character"):
            read_delimiter(text)


def test_columns_have_one_name_each() -> None:
    assert column_names(["", " text ", "id"], "x") == ["column 1", "text", "id"]
    with pytest.raises(InputError, match="same name, 'a'"):
        column_names(["a", "b", "a "], "x")
