"""Translation: the same text in another language."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import Created, Text
from modelmill_tasks.shared.generation import GenerationConfig, Usage

Language = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]


class Config(GenerationConfig):
    """Options of the model."""

    source_language: Language | None = Field(
        None,
        description="Language of the text, as the model calls it: English or en for T5, eng_Latn for NLLB, "
        "en_XX for mBART. The model's own default if not set.",
        examples=["en"],
    )
    target_language: Language | None = Field(
        None,
        description="Language to translate into, in the same form. If a model knows many languages, "
        "it is required.",
        examples=["de"],
    )


class Input(TaskInput):
    text: Annotated[Text, Batched] = Field(
        description="The text to translate. Text beyond the model's window is cut off."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    translation_text: str = Field(
        description="The translation; the first one if num_return_sequences asks for several."
    )
    usage: Usage
    created: Created


TASK = Task(
    name="translation",
    group=TaskGroup.TEXT,
    summary="The same text in another language.",
    input=Input,
    output=Output,
    example=Example(
        input={
            "text": "The house is wonderful.",
            "config": {"source_language": "en", "target_language": "de", "num_beams": 1},
        },
        output={
            "translation_text": "Das Haus ist wunderbar.",
            "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
            "created": 1763717262,
        },
        model="t5-base",
        real=False,
    ),
)
