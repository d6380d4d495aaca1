"""Conversations in the form that a model's chat template gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelmill.errors import invalid_field
from modelmill_backends.shared.literal import Marks
from modelmill_backends.transformers.answers import now, texts_of, usage_of
from modelmill_backends.transformers.generation import Generative
from modelmill_backends.transformers.stopping import Row
from modelmill_tasks.chat_completion import AssistantMessage, Choice, ImagePart, Message, Output, Role
from modelmill_tasks.shared.generation import FinishReason


def has_template(processor: Any) -> bool:
    """Whether the tokenizer or processor has a chat template."""
    return bool(getattr(processor, "chat_template", None))


def templated(processor: Any, marks: Marks, messages: Sequence[dict[str, Any]], field: str) -> str:
    """The conversation as one text, up to the start of the assistant's answer, with marks in the messages.

    Args:
        processor: A tokenizer or processor with a chat template.
        marks: Protects the messages, so that none can forge turns of other roles.
        messages: Each has ``role`` and ``content``, as the template takes them.
        field: The field to name in the error.

    Raises:
        ModelmillError: ``invalid_input``: the template refuses the conversation; the message says why.
    """
    import jinja2

    try:
        text: str = processor.apply_chat_template(
            _protected(messages, marks), tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateError as error:
        said = marks.cleaned(str(error) or type(error).__name__)[:300]
        raise invalid_field(field, f"the model's chat template refuses it: {said}") from None
    return text


def _protected(messages: Sequence[dict[str, Any]], marks: Marks) -> list[dict[str, Any]]:
    """The messages, with marks in the control tokens that they spell out."""
    texts: list[str] = []
    lenient: set[int] = set()
    for message in messages:
        content = message["content"]
        own = [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
        if message["role"] == Role.ASSISTANT:
            # Templates look for the end of a thought in earlier answers.
            lenient.update(range(len(texts), len(texts) + len(own)))
        texts += own
    broken = iter(marks.broken(texts, lenient))
    found = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            found.append({**message, "content": next(broken)})
        else:
            parts = [{**part, "text": next(broken)} if "text" in part else part for part in content]
            found.append({**message, "content": parts})
    return found


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a model that reads text only: each content is one text, with one line per part.

    Raises:
        ModelmillError: ``invalid_input``: a message holds an image.
    """
    found = []
    for place, message in enumerate(messages):
        content = message.content
        if not isinstance(content, str):
            if any(isinstance(part, ImagePart) for part in content):
                raise invalid_field(f"messages.{place}.content", "this model does not take images, only text")
            content = "\n".join(part.text for part in content if not isinstance(part, ImagePart))
        found.append({"role": message.role.value, "content": content})
    return found


def rich_messages(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[str]]:
    """Messages for a model that also takes images, each content a list of parts; and the images, in order."""
    found, images = [], []
    for message in messages:
        parts: list[dict[str, Any]] = []
        content = message.content
        if isinstance(content, str):
            parts.append({"type": "text", "text": content})
        else:
            for part in content:
                if isinstance(part, ImagePart):
                    images.append(part.image)
                    parts.append({"type": "image"})
                else:
                    parts.append({"type": "text", "text": part.text})
        found.append({"role": message.role.value, "content": parts})
    return found, images


def completion(model: Generative, prompt_tokens: int, rows: Sequence[Row]) -> Output:
    """The task's output for the rows of one item."""
    texts = texts_of(model, rows, shows_end=True)
    choices = [
        Choice(
            index=index,
            message=AssistantMessage(content=text),
            finish_reason=row.reason or FinishReason.LENGTH,
        )
        for index, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]
    return Output(choices=choices, usage=usage_of(prompt_tokens, rows), created=now())
