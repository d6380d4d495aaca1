from __future__ import annotations

import json
import os

from modelmill.formats.names import shown, storable_data, storable_name


def test_different_names_stay_different_and_become_text() -> None:
    raw = [b"a.png", b"a\xff.png", rb"a\xff.png", rb"a\\xff.png", b"a\\\xff.png", b"a\\.png", b"a\xfe.png"]

    written = [storable_name(os.fsdecode(name)) for name in raw]

    assert written[:3] == ["a.png", r"a\xff.png", r"a\\xff.png"]
    assert written[5] == r"a\.png"
    assert len(set(written)) == len(raw)
    assert all(json.loads(json.dumps(name).encode("utf-8")) == name for name in written)


def test_a_name_in_a_message_is_one_line_without_commands_for_a_terminal() -> None:
    assert shown(os.fsdecode(b"a\n\x1b[31m\xff\x7f")) == r"a\x0a\x1b[31m\xff\x7f"
    assert shown("日本 ü.png") == "日本 ü.png"
    assert shown("a\u202egpj.exe") == r"a\u202egpj.exe"


def test_halves_of_characters_are_written_as_escapes() -> None:
    assert storable_data({"a\ud83d": ["\udcff", 1, None]}) == {"a\\ud83d": ["\\xff", 1, None]}
