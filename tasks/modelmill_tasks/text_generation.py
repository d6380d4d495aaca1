"""Text generation: continues a text, or answers a prompt."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import MAX_TEXT, Created, Part, Text
from modelmill_tasks.shared.generation import FinishReason, GenerationConfig, Usage


class Config(GenerationConfig):
    """Options of the model."""

    chat_template: bool | None = Field(
        None,
        description="true: answer the text as a user's message, in the form of the model's chat template; a "
        "model without a template refuses it. false: continue the text as it is. If not set: true if the "
        "model has a template, unless return_full_text or special_tokens is true.",
    )
    return_full_text: bool = Field(
        False, description="Put the prompt before each text of the answer. It asks for a continuation."
    )
    special_tokens: bool = Field(
        False,
        description="Read the names of special tokens in the text as these tokens, such as <|fim_prefix|>, "
        "and continue it as it is. Set it only for a text that you wrote yourself.",
    )
    system_message: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_TEXT,
        description="How the model must behave. The text then follows it as a user's message, in the form "
        "of the model's chat template; a model without a template refuses it.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> Config:
        if self.chat_template is False and self.system_message is not None:
            raise ValueError("system_message needs the chat template; leave chat_template out")
        if self.special_tokens and (self.chat_template or self.system_message is not None):
            raise ValueError("special_tokens takes the text as it is; leave the chat template out")
        return self


class Input(TaskInput):
    text: Annotated[Text, Batched] = Field(
        description="The prompt. A model with a chat template answers it, others continue it: see "
        "config.chat_template. A prompt that fills the model's window is refused."
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
            "text": "What is the capital of France?",
            "config": {"max_new_tokens": 20, "do_sample": False},
        },
        output={
            "choices": [{"index": 0, "text": "The capital of France is Paris.", "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 37, "completion_tokens": 8, "total_tokens": 45},
            "created": 1763717262,
        },
        model="smollm2",
    ),
)
