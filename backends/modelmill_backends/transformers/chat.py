"""Conversations as a model's chat template writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelmill_backends.transformers.decoding import refused
from modelmill_backends.transformers.generation import Generative, now, text_of, usage_of
from modelmill_backends.transformers.stopping import Row
from modelmill_tasks.chat_completion import AssistantMessage, Choice, ImagePart, Message, Output
from modelmill_tasks.shared.generation import FinishReason


def has_template(processor: Any) -> bool:
    """Whether the tokenizer or processor knows how to write a conversation."""
    return bool(getattr(processor, "chat_template", None))


def templated(processor: Any, messages: Sequence[dict[str, Any]], field: str) -> str:
    """The conversation as one text, up to where the assistant's answer begins.

    Args:
        processor: A tokenizer or processor with a chat template.
        messages: ``role`` and ``content`` each, as the template takes them.
        field: What to name in the error.

    Raises:
        ModelmillError: ``invalid_input``: the template does not take such a conversation, and says why.
    """
    import jinja2

    try:
        text: str = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        said = (str(error) or type(error).__name__)[:300]
        raise refused(field, f"the model's chat template does not take it: {said}") from None
    return text


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a model that only reads: each content a text, its parts a line each.

    Raises:
        ModelmillError: ``invalid_input``: a message holds an image.
    """
    found = []
    for place, message in enumerate(messages):
        content = message.content
        if not isinstance(content, str):
            if any(isinstance(part, ImagePart) for part in content):
                raise refused(f"messages.{place}.content", "this model does not take images, only text")
            content = "\n".join(part.text for part in content if not isinstance(part, ImagePart))
        found.append({"role": message.role.value, "content": content})
    return found


def rich_messages(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[str]]:
    """Messages for a model that also sees, each content a list of parts, and the images in their order."""
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
    """The task's output of one item's rows."""
    choices = [
        Choice(
            index=index,
            message=AssistantMessage(content=text_of(model, row)),
            finish_reason=row.reason or FinishReason.LENGTH,
        )
        for index, row in enumerate(rows)
    ]
    return Output(choices=choices, usage=usage_of(prompt_tokens, rows), created=now())
