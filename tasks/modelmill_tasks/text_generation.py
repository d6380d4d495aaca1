"""Text generation: continues a text, or answers a prompt."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import MAX_TEXT, Created, Part, Text
from modelmill_tasks.shared.generation import FinishReason, GenerationConfig, Usage


class Config(GenerationConfig):
    """Options of the model."""

    return_full_text: bool = Field(False, description="Put the prompt before each text of the answer.")
    system_message: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_TEXT,
        description="How the model must behave. The text then follows it as a user's message, in the form "
        "of the model's chat template; a model without a template refuses it. If it is not set, the model "
        "continues the text as it is.",
    )


class Input(TaskInput):
    text: Annotated[Text, Batched] = Field(
        description="The prompt. A prompt that fills the model's window is refused."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Choice(Part):
    index: int
    text: str = Field(description="The text of the model; with the prompt only if return_full_text is true.")
    finish_reason: FinishReason


class Output(TaskOutput):
    choices: list[Choice] = Field(description="By index; as many as num_return_sequences.")
    usage: Usage
    created: Created


TASK = Task(
    name="text-generation",
    group=TaskGroup.TEXT,
    summary="Continues a text, or answers a prompt.",
    input=Input,
    output=Output,
    example=Example(
        input={
            "text": "The capital of France is",
            "config": {"max_new_tokens": 10, "stop": ["\n"], "do_sample": False},
        },
        output={
            "choices": [{"index": 0, "text": " Paris.", "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
            "created": 1763717262,
        },
        model="smollm2",
    ),
)
