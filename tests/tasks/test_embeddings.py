"""The contracts of the embedding tasks and of optical character recognition: which requests they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.examples import CAT

CONTENT = "multimodal-embedding"
OCR = "optical-character-recognition"
TASKS = ["image-embedding", "image-text-embedding", CONTENT, OCR]


def refused(task: str, body: dict[str, Any], *, batched: bool = False) -> ModelmillError:
    with pytest.raises(ModelmillError) as caught:
        find_task(task).parse(json.dumps(body), batched=batched)
    return caught.value


@pytest.mark.parametrize(
    ("task", "body", "field", "message"),
    [
        (CONTENT, {"input": {}}, "input", "exactly one of text and image"),
        (CONTENT, {"input": {"text": "a", "image": CAT}}, "input", "exactly one of text and image"),
        (CONTENT, {"input": {"texts": "a"}}, "input.texts", "not permitted"),
        (CONTENT, {"input": {"text": ""}}, "input.text", "at least 1 character"),
        (CONTENT, {"input": "a cat"}, "input", ""),
        ("image-embedding", {"image": CAT, "text": "a"}, "text", "not permitted"),
        ("image-embedding", {"image": CAT, "config": {"normalize": "yes please"}}, "config.normalize", ""),
        ("image-text-embedding", {"image": CAT}, "text", "required"),
        ("image-text-embedding", {"image": CAT, "text": ""}, "text", "at least 1 character"),
        (OCR, {"image": CAT, "config": {"languages": []}}, "config.languages", "at least 1 item"),
        (OCR, {"image": CAT, "config": {"languages": ["English!"]}}, "config.languages.0", "pattern"),
        (OCR, {"image": CAT, "config": {"language": ["en"]}}, "config.language", "not permitted"),
    ],
)
def test_a_wrong_field_is_named(task: str, body: dict[str, Any], field: str, message: str) -> None:
    error = refused(task, body)

    assert error.code is ErrorCode.INVALID_INPUT
    assert field in [problem.field for problem in error.fields]
    assert message in error.message


def test_a_wrong_item_of_a_batched_job_is_named_by_its_number() -> None:
    error = refused(CONTENT, {"input": [{"text": "a"}, {}]}, batched=True)

    assert error.fields[0].field == "input.1"


def test_an_image_inside_of_an_input_is_looked_at_like_any_other() -> None:
    error = refused(CONTENT, {"input": {"image": "https://example.com/cat.jpg"}})

    assert error.code is ErrorCode.MEDIA_SOURCE_REFUSED
    assert error.fields[0].field == "input.image"


def test_a_batched_job_may_mix_texts_and_images() -> None:
    task = find_task(CONTENT)
    items: Any = task.items(
        task.parse(json.dumps({"input": [{"text": "a cat"}, {"image": CAT}]}), batched=True)
    )

    assert [(item.input.text, item.input.image is not None) for item in items] == [
        ("a cat", False),
        (None, True),
    ]


def test_lists_of_languages_are_shared_or_one_an_item() -> None:
    task = find_task(OCR)
    shared, each = (
        task.items(task.parse(json.dumps({"image": [CAT, CAT], "config": config}), batched=True))
        for config in ({"languages": ["en"]}, [{"languages": ["en"]}, {"languages": ["de", "fr"]}])
    )

    def languages(items: Any) -> list[list[str]]:
        return [item.config.languages for item in items]

    assert languages(shared) == [["en"], ["en"]]
    assert languages(each) == [["en"], ["de", "fr"]]


@pytest.mark.parametrize("name", TASKS)
def test_samples_are_unequal_requests(name: str) -> None:
    from modelmill_backends.conformance import samples_of

    task = find_task(name)
    items = samples_of(task, 16)

    assert len({json.dumps(item, sort_keys=True) for item in items}) > 12
    for item in items:
        task.parse(json.dumps(item))
