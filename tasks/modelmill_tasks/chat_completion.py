"""Chat completion: the assistant's next message in a conversation, which may show images."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import MAX_TEXT, Created, Part, Text
from modelmill_tasks.shared.generation import FinishReason, GenerationConfig, Usage
from modelmill_tasks.shared.images import Image

MAX_MESSAGES = 1000
MAX_PARTS = 100


class Role(StrEnum):
    """Who says a message."""

    SYSTEM = "system"
    """Says how the assistant must behave."""
    USER = "user"
    ASSISTANT = "assistant"


class TextPart(Part):
    type: Literal["text"]
    text: Text


class ImagePart(Part):
    type: Literal["image"]
    image: Image


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _form(content: Any) -> str:
    return "text" if isinstance(content, str) else "parts"


Content = Annotated[
    Annotated[str, Field(max_length=MAX_TEXT), Tag("text")]
    | Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_PARTS), Tag("parts")],
    Discriminator(_form),
]


class Message(Part):
    role: Role
    content: Content = Field(
        description="A text, or parts in order. Images need a model that sees; others refuse them."
    )


class Config(GenerationConfig):
    """Options of the model."""


class Input(TaskInput):
    messages: Annotated[
        list[Message],
        Field(min_length=1, max_length=MAX_MESSAGES),
        Batched,
    ] = Field(
        description="The conversation, oldest first. The last message is the user's; a system message, if "
        "any, is the first. A conversation that fills the model's window is refused."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")

    @field_validator("messages")
    @classmethod
    def _in_order(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != Role.USER:
            raise ValueError("the last message must be the user's")
        if any(message.role == Role.SYSTEM for message in messages[1:]):
            raise ValueError("a system message can only be the first")
        return messages


class AssistantMessage(Part):
    role: Literal[Role.ASSISTANT] = Role.ASSISTANT
    content: str


class Choice(Part):
    index: int
    message: AssistantMessage
    finish_reason: FinishReason


class Output(TaskOutput):
    choices: list[Choice] = Field(description="By index; as many as num_return_sequences.")
    usage: Usage
    created: Created


def samples(count: int) -> Sequence[dict[str, Any]]:
    """Conversations of one to four messages, with and without a system message, in both forms of content."""
    questions = ("What is the capital of France?", "Name a colour.", "Why?", "How far is the moon from here?")
    found: list[dict[str, Any]] = []
    for index in range(count):
        question = f"{questions[index % 4]} Say it in {index + 1} words."
        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        if index % 3 == 1:
            messages[0]["content"] = [{"type": "text", "text": question}]
        if index % 3 == 2:
            messages = [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi, what can I do for you?"},
                *messages,
            ]
        if index % 4 == 1:
            messages.insert(0, {"role": "system", "content": "You are brief."})
        found.append({"messages": messages, "config": {"max_new_tokens": 4 + index % 5, "do_sample": False}})
    return found


TASK = Task(
    name="chat-completion",
    group=TaskGroup.TEXT,
    summary="The assistant's next message in a conversation, which may show images.",
    input=Input,
    output=Output,
    example=Example(
        input={
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "config": {"max_new_tokens": 20, "do_sample": False},
        },
        output={
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "The capital of France is Paris."},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 37, "completion_tokens": 8, "total_tokens": 45},
            "created": 1763717262,
        },
        model="smollm2",
    ),
    samples=samples,
)
