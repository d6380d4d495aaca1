from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelmill.client.backfill.mapping import Mapper, read_columns
from modelmill.client.backfill.rows import Row
from modelmill.client.backfill.schema import TaskSchema
from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill_tasks.registry import all_tasks
from modelmill_tasks.shared.sources import source_bytes

ZERO_SHOT = "zero-shot-image-classification"


def mapper(
    document: Mapping[str, Any],
    task: str = ZERO_SHOT,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, Any] | None = None,
    assignments: tuple[str, ...] = (),
) -> Mapper:
    return Mapper(
        TaskSchema(document, task),
        columns=columns or {},
        constants=constants or {},
        assignments=assignments,
        job={"lane": "bulk"},
    )


def sent(made: Mapper, row: Row) -> dict[str, Any]:
    line = made.request(row, "key")
    assert line.endswith(b"\n")
    fields = dict(json.loads(line))
    assert fields.pop("idempotency_key") == "key"
    assert fields.pop("lane") == "bulk"
    return fields


def test_the_schema_of_every_task_is_found(document: dict[str, Any]) -> None:
    for name, task in all_tasks().items():
        schema = TaskSchema(document, name)
        assert set(schema.own_fields) == {*task.batched_fields, *task.shared_fields}
        assert schema.required == {
            key for key, field in task.input.model_fields.items() if field.is_required()
        }
        assert schema.result["properties"].keys() == task.output.model_fields.keys()


def test_columns_named_as_fields_need_no_map(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"photo")
    row = Row(0, {"image": "a.jpg", "classes": ["cat"], "id": 7, "lane": "interactive"}, tmp_path)
    made = mapper(document)

    made.check(row)
    fields = sent(made, row)

    assert source_bytes(fields.pop("image")) == b"photo"
    assert fields == {"classes": ["cat"]}
    assert row.keep == {"image": "a.jpg", "id": 7, "lane": "interactive"}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("classes=cat, dog", {"classes": ["cat", "dog"]}),
        ('classes:=["cat, or dog"]', {"classes": ["cat, or dog"]}),
        ("classes=cat", {"classes": ["cat"]}),
        ("config.multi_label=true", {"config": {"multi_label": True}}),
        ("config.hypothesis_template=a {}, a {}", {"config": {"hypothesis_template": "a {}, a {}"}}),
        ("config.key_of_a_model:=3", {"config": {"key_of_a_model": 3}}),
        ('metadata:={"batch": 7}', {"metadata": {"batch": 7}}),
    ],
)
def test_text_becomes_what_the_field_takes(
    document: dict[str, Any], assignment: str, expected: dict[str, Any]
) -> None:
    if assignment.startswith("metadata") and "metadata" not in TaskSchema(document, ZERO_SHOT).fields:
        pytest.skip("this server has no metadata")
    fields = sent(mapper(document, assignments=(assignment,)), Row(0, {"image": "https://a.example/b.jpg"}))

    assert fields == {"image": "https://a.example/b.jpg", **expected}


def test_values_may_come_from_files(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes.json").write_text('["cat"]')
    (tmp_path / "photo.jpg").write_bytes(b"photo")

    made = mapper(document, assignments=("classes:=@classes.json", "image=@photo.jpg"))

    fields = sent(made, Row(0, {}))
    assert source_bytes(fields["image"]) == b"photo"
    assert fields["classes"] == ["cat"]


def test_text_of_csv_is_read_as_the_field_says(document: dict[str, Any]) -> None:
    columns = {"config.multi_label": "multi", "classes": "labels"}
    made = mapper(document, "zero-shot-classification", columns)
    row = Row(0, {"text": "12", "labels": "cat,dog", "multi": "False"}, is_text=True)

    assert sent(made, row) == {"text": "12", "classes": ["cat", "dog"], "config": {"multi_label": False}}
    empty = Row(1, {"text": "12", "labels": "cat", "multi": ""}, is_text=True)
    assert sent(made, empty) == {"text": "12", "classes": ["cat"]}
    with pytest.raises(ModelmillError, match="multi: 'x' is not of type boolean"):
        made.request(Row(2, {"text": "12", "labels": "cat", "multi": "x"}, is_text=True), "key")
    with pytest.raises(ModelmillError, match="labels is empty"):
        made.request(Row(3, {"text": "12", "labels": ""}, is_text=True), "key")


def test_files_go_to_the_only_field_that_takes_one(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"photo")
    made = mapper(document, assignments=("classes=cat",))
    row = Row(0, {"path": str(path)}, Path())

    made.check(row, is_file=True)

    assert source_bytes(sent(made, row)["image"]) == b"photo"
    assert row.keep == {"path": str(path)}
    with pytest.raises(ConfigError, match="no field of its own for one"):
        mapper(document, "text-embedding").check(row, is_file=True)
    nested = mapper(document, "multimodal-embedding", {"input.image": "path"})
    nested.check(row, is_file=True)
    assert source_bytes(sent(nested, row)["input"]["image"]) == b"photo"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://a.example/b.jpg", None),
        ("file:05032039-e7dd-4ca5-8941-ebff9f5f2e09", None),
        ("data:image/png;base64,AAAA", None),
        (base64.b64encode(bytes(100)).decode(), None),
        (b"photo", b"photo"),
        ({"bytes": b"photo", "path": "a.jpg"}, b"photo"),
    ],
)
def test_media_are_taken_in_many_forms(document: dict[str, Any], value: Any, expected: bytes | None) -> None:
    fields = sent(mapper(document, constants={"classes": ["a"]}), Row(0, {"image": value}))

    if expected is None:
        assert fields["image"] == value
    else:
        assert source_bytes(fields["image"]) == expected


@pytest.mark.parametrize("image", [Image.new("RGB", (2, 2)), np.zeros((2, 2, 3), "uint8")])
def test_images_of_libraries_are_taken(document: dict[str, Any], image: Any) -> None:
    fields = sent(mapper(document, constants={"classes": ["a"]}), Row(0, {"image": image}))

    assert source_bytes(fields["image"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("nothing.jpg", ErrorCode.MEDIA_NOT_FOUND),
        ("../nothing\0.jpg", ErrorCode.MEDIA_NOT_FOUND),
        ("?" * 5000, ErrorCode.MEDIA_NOT_FOUND),
        (12, ErrorCode.INVALID_MEDIA),
        ({"path": None}, ErrorCode.INVALID_MEDIA),
        (Path("nothing.jpg"), ErrorCode.MEDIA_NOT_FOUND),
    ],
)
def test_media_that_are_none_are_errors_of_the_row(
    document: dict[str, Any], tmp_path: Path, value: Any, code: ErrorCode
) -> None:
    with pytest.raises(ModelmillError) as caught:
        mapper(document, constants={"classes": ["a"]}).request(Row(0, {"image": value}, tmp_path), "key")

    assert caught.value.code is code


def test_text_that_names_a_file_stays_text_in_other_fields(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")

    assert sent(mapper(document, "text-embedding"), Row(0, {"text": "secret.txt"}, tmp_path)) == {
        "text": "secret.txt"
    }


def test_values_beyond_json_are_sent_where_they_have_a_form(document: dict[str, Any]) -> None:
    made = mapper(document, "custom")
    value = {"day": date(2026, 1, 2), "price": Decimal("1.5"), "vector": np.arange(2)}

    assert sent(made, Row(0, {"input": value}))["input"] == {
        "day": "2026-01-02",
        "price": 1.5,
        "vector": [0, 1],
    }
    for bad in (b"bytes", float("nan"), object()):
        with pytest.raises(ModelmillError, match="what JSON cannot hold"):
            made.request(Row(0, {"input": bad}), "key")


def test_what_is_small_and_was_not_sent_is_kept(document: dict[str, Any]) -> None:
    columns = {
        "text": "sent",
        "id": 1,
        "day": date(2026, 1, 2),
        "long": "x" * 2000,
        "list": [1],
        "none": None,
    }
    row = Row(0, columns)
    mapper(document, "text-embedding").request(row, "key")
    picture = Row(1, {"image": base64.b64encode(bytes(400)).decode(), "classes": ["a"], "id": 2})
    mapper(document).request(picture, "key")

    assert row.keep == {"id": 1, "day": "2026-01-02", "none": None}
    assert picture.keep == {"id": 2}


@pytest.mark.parametrize(
    ("columns", "constants", "assignments", "match"),
    [
        ({"imag": "path"}, {}, (), r"no field imag; it has image, classes, config"),
        ({}, {"colour": 1}, (), "no field colour"),
        ({}, {}, ("colour=red",), "no field colour"),
        ({}, {}, ("lane=bulk",), "lane has an option of its own"),
        ({}, {}, ("classes",), "sets no field"),
        ({}, {}, ("classes:=[",), "not JSON"),
        ({}, {}, ("config.multi_label=perhaps",), "is not of type boolean"),
        ({}, {}, ("classes:=@nothing.json",), "cannot be read: No such file"),
        ({"classes": "labels"}, {"classes": ["a"]}, (), "both set and mapped"),
        ({}, {"config": 1}, ("config.multi_label=true",), "a value of its own"),
    ],
)
def test_what_no_row_could_be_is_refused_at_once(
    document: dict[str, Any],
    columns: dict[str, str],
    constants: dict[str, Any],
    assignments: tuple[str, ...],
    match: str,
) -> None:
    with pytest.raises(ConfigError, match=match):
        mapper(document, ZERO_SHOT, columns, constants, assignments)


def test_the_first_row_tells_what_is_missing(document: dict[str, Any]) -> None:
    row = Row(0, {"picture": "a.jpg", "classes": ["a"]})

    with pytest.raises(ConfigError, match=r"nothing gives image.*the columns are picture, classes"):
        mapper(document).check(row)
    with pytest.raises(ConfigError, match="no column 'file' for image"):
        mapper(document, columns={"image": "file"}).check(row)
    mapper(document, columns={"image": "picture"}).check(row)


def test_maps_are_read_from_text() -> None:
    assert read_columns(["image=path", "config.x=a=b"]) == {"image": "path", "config.x": "a=b"}
    with pytest.raises(ConfigError, match="maps no column"):
        read_columns(["image"])


def test_a_task_that_is_not_described_is_told(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not say what the task nothing takes"):
        TaskSchema(document, "nothing")
