"""Fields of all tasks that generate text: how to choose tokens, and how the generation ended."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from modelmill_tasks.contract import TaskConfig
from modelmill_tasks.shared.fields import Part

MAX_NEW_TOKENS = 32_768
DEFAULT_MAX_NEW_TOKENS = 256
"""Tokens to make at most, if neither the caller nor the model says how many."""
MAX_SEQUENCES = 16
MAX_SEED = 2**63 - 1

StopString = Annotated[str, Field(min_length=1, max_length=200)]


class FinishReason(StrEnum):
    """Why a text ends."""

    STOP = "stop"
    """The model ended the text, or the text reached a stop string."""
    LENGTH = "length"
    """The text reached ``max_new_tokens`` or the end of the model's window."""
    MAX_TIME = "max_time"
    CONTENT_FILTER = "content_filter"


class GenerationConfig(TaskConfig):
    """How tokens are chosen. The default of each option is the model's own (``generation_config.json``).

    The model draws tokens at random if ``do_sample`` is true. If ``do_sample`` is not set, it does so if a
    temperature above 0, ``top_k``, ``top_p`` or ``seed`` is given. With none of them, its default applies.
    """

    do_sample: bool | None = Field(
        None,
        description="true: draw tokens at random, by their probability. false: always take the likeliest. "
        "If not set: true if temperature (above 0), top_k, top_p or seed is given, else the model's way.",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_NEW_TOKENS,
        description="Tokens to make at most. If not set: the model's own number or, if it has none, "
        f"{DEFAULT_MAX_NEW_TOKENS}. The text never grows beyond the model's window.",
    )
    min_new_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_NEW_TOKENS,
        description="Tokens to make at least before the model may end the text.",
    )
    max_time: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Seconds after which the model makes no further token; it makes at least one.",
    )
    num_return_sequences: int | None = Field(
        None,
        ge=1,
        le=MAX_SEQUENCES,
        description="Answers to make for one input; several need sampling or beams.",
    )
    num_beams: int | None = Field(
        None, ge=1, le=MAX_SEQUENCES, description="Beams of a beam search; 1 means no beam search."
    )
    repetition_penalty: float | None = Field(
        None, gt=0, le=100, description="Above 1 makes tokens less likely that the text already holds."
    )
    length_penalty: float | None = Field(
        None,
        ge=-100,
        le=100,
        description="For beam search: above 0 prefers longer texts, below 0 shorter ones.",
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=100,
        description="0: always the likeliest token. 1: the model's own probabilities. Above 1: closer "
        "to uniform.",
    )
    top_k: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Draw among this many likeliest tokens, a whole number; 0 is no limit. If neither the "
        "caller nor the model sets it: 50.",
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw among the likeliest tokens that together reach this probability."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="The same seed draws the same tokens on one kind of device. Answer i of one input uses "
        "seed + i.",
    )
    stop: Annotated[list[StopString], Field(max_length=16)] | None = Field(
        None, description="Strings that end the text; the string itself is not part of the text."
    )

    @model_validator(mode="after")
    def _agree(self) -> GenerationConfig:
        if self.top_k is not None and self.top_k != int(self.top_k):
            raise ValueError("top_k must be a whole number")
        if self.min_new_tokens and self.max_new_tokens and self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens is more than max_new_tokens")
        if self.temperature == 0 and self.do_sample:
            raise ValueError("temperature 0 is greedy and cannot sample; leave do_sample out")
        if (self.num_return_sequences or 1) > 1 and self.samples is False and (self.num_beams or 1) < 2:
            raise ValueError(
                "num_return_sequences above 1 needs sampling or beams; greedy answers are all equal"
            )
        if self.samples and (self.num_beams or 1) > 1:
            raise ValueError("num_beams and sampling exclude each other")
        if (self.num_beams or 1) > 1 and (self.num_return_sequences or 1) > (self.num_beams or 1):
            raise ValueError("num_return_sequences is more than num_beams")
        return self

    @property
    def samples(self) -> bool | None:
        """Whether tokens are drawn at random; None if the caller leaves this to the model's default."""
        if self.do_sample is not None:
            return self.do_sample
        if self.temperature == 0:
            return False
        given = any(value is not None for value in (self.temperature, self.top_k, self.top_p, self.seed))
        return True if given else None


class Usage(Part):
    """Numbers of tokens, as the model's own tokenizer counts."""

    prompt_tokens: int
    completion_tokens: int = Field(description="Tokens of all choices together.")
    total_tokens: int
