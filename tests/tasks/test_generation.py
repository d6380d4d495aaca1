"""The contracts of the tasks that generate text: which requests they accept and refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_tasks.chat_completion import Input as Chat
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.generation import GenerationConfig
from modelmill_tasks.text_generation import Input as Text

GENERATING = (
    "text-generation",
    "chat-completion",
    "summarization",
    "translation",
    "image-to-text",
    "visual-question-answering",
)


def fields(task: str, body: dict[str, Any], *, batched: bool = False) -> list[str]:
    """The fields that are refused."""
    with pytest.raises(ModelmillError) as caught:
        find_task(task).parse(json.dumps(body), batched=batched)
    assert caught.value.code is ErrorCode.INVALID_INPUT
    return [problem.field for problem in caught.value.fields]


@pytest.mark.parametrize("task", GENERATING)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 32_769),
        ("min_new_tokens", -1),
        ("max_time", 0),
        ("max_time", 3601),
        ("num_return_sequences", 17),
        ("num_beams", 0),
        ("repetition_penalty", 0),
        ("length_penalty", 101),
        ("temperature", -0.1),
        ("temperature", 100.5),
        ("top_k", -1),
        ("top_k", "many"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", [""]),
        ("stop", ["a"] * 17),
        ("max_length", 5),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(task: str, key: str, value: Any) -> None:
    body = dict(find_task(task).example.input) | {"config": {key: value}}

    (field,) = fields(task, body)

    assert field.startswith(f"config.{key}")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is more than max_new_tokens"),
        ({"temperature": 0, "do_sample": True}, "temperature 0 is greedy"),
        ({"num_return_sequences": 2, "do_sample": False}, "needs sampling or beams"),
        ({"num_return_sequences": 2, "temperature": 0}, "needs sampling or beams"),
        ({"num_beams": 2, "seed": 1}, "num_beams and sampling exclude each other"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is more than num_beams"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        GenerationConfig.model_validate(config)


@pytest.mark.parametrize(
    ("config", "samples"),
    [
        ({}, None),
        ({"max_new_tokens": 5, "repetition_penalty": 1.2, "stop": ["."], "num_beams": 2}, None),
        ({"num_return_sequences": 2}, None),
        ({"do_sample": True}, True),
        ({"do_sample": False, "temperature": 0.7}, False),
        ({"temperature": 0}, False),
        ({"temperature": 0, "seed": 1, "top_p": 0.9}, False),
        ({"temperature": 0.7}, True),
        ({"top_k": 50.0}, True),
        ({"top_p": 0.9}, True),
        ({"seed": 0}, True),
    ],
)
def test_sampling_is_asked_for_ruled_out_or_left_to_the_model(
    config: dict[str, Any], samples: bool | None
) -> None:
    assert GenerationConfig.model_validate(config).samples is samples


def test_a_conversation_ends_with_the_user_and_begins_with_the_system() -> None:
    user, assistant, system = ({"role": role, "content": "Hello"} for role in ("user", "assistant", "system"))

    Chat.model_validate({"messages": [system, user, assistant, user]})
    for messages in ([], [user, assistant], [system], [user, system, user]):
        assert fields("chat-completion", {"messages": messages}) == ["messages"]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "tool", "content": "Hello"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": []}, "messages.0.content.parts"),
        ({"role": "user", "content": 5}, "messages.0.content.parts"),
        ({"role": "user", "content": [{"type": "sound"}]}, "messages.0.content.parts.0"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.parts.0.text.text"),
        ({"role": "user", "content": "Hello", "name": "Anna"}, "messages.0.name"),
    ],
)
def test_a_message_that_is_none_is_refused_by_its_place(message: dict[str, Any], field: str) -> None:
    assert fields("chat-completion", {"messages": [message]}) == [field]


def test_an_image_in_a_message_is_looked_at() -> None:
    def body(image: str) -> str:
        part = {"type": "image", "image": image}
        return json.dumps({"messages": [{"role": "user", "content": [part]}]})

    task = find_task("chat-completion")
    task.parse(body(CAT))
    for image, code in (
        ("bm90aGluZw==", ErrorCode.INVALID_MEDIA),
        ("https://x/y.png", ErrorCode.MEDIA_SOURCE_REFUSED),
    ):
        with pytest.raises(ModelmillError) as caught:
            task.parse(body(image))
        assert caught.value.code is code


def test_conversations_are_batched_as_lists_of_lists() -> None:
    task = find_task("chat-completion")
    one, two = ([{"role": "user", "content": text}] for text in ("Hello", "Bye"))
    config = [{"seed": 1}, {"max_new_tokens": 3}]

    items = task.items(task.parse(json.dumps({"messages": [one, two], "config": config}), batched=True))

    assert [item.model_dump(mode="json")["messages"] for item in items] == [one, two]
    assert [item.model_dump()["config"]["max_new_tokens"] for item in items] == [None, 3]


def test_a_caption_may_have_no_beginning_one_for_all_or_one_an_item() -> None:
    task = find_task("image-to-text")

    def beginnings(**more: Any) -> list[Any]:
        request = task.parse(json.dumps({"image": [CAT, CAT], **more}), batched=True)
        return [item.model_dump()["text"] for item in task.items(request)]

    assert beginnings() == [None, None]
    assert beginnings(text="a photo of") == ["a photo of", "a photo of"]
    assert beginnings(text=["a photo of", None]) == ["a photo of", None]


def test_languages_are_taken_without_the_spaces_around_them() -> None:
    task = find_task("translation")
    config = {"source_language": " en ", "target_language": "de"}

    item = task.parse(json.dumps({"text": "Hello", "config": config}))

    assert item.model_dump()["config"]["source_language"] == "en"
    assert fields("translation", {"text": "Hello", "config": {"target_language": "  "}}) == [
        "config.target_language"
    ]


def test_texts_must_not_be_empty() -> None:
    for task, field in (("text-generation", "text"), ("summarization", "text"), ("translation", "text")):
        assert fields(task, {field: ""}) == [field]
    assert fields("visual-question-answering", {"image": CAT, "question": ""}) == ["question"]
    assert fields("text-generation", {"text": "a", "config": {"system_message": ""}}) == [
        "config.system_message"
    ]
    assert Text.model_validate({"text": "a"}).config.return_full_text is False


def test_answers_are_between_one_and_a_hundred() -> None:
    body = {"image": CAT, "question": "Why?"}

    for number in (0, 101):
        assert fields("visual-question-answering", {**body, "config": {"num_answers": number}}) == [
            "config.num_answers"
        ]
