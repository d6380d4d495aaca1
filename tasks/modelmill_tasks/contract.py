"""The contract of a task. This file is short: read it first.

A task is declared once, for a single item: a pydantic ``Input``, whose batched fields are marked with
``Batched``, and an ``Output``. The rest follows: the request of a batched job (lists), how it is split
into items, which items may share a batch, the OpenAPI schemas and the documentation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from modelmill.errors import ErrorCode, FieldError, ModelmillError, invalid_field
from modelmill.states import Lane
from modelmill_tasks.body_limits import MAX_ELEMENTS, check_body, json_size, most_elements
from modelmill_tasks.limits import MediaLimits

MAX_ITEMS = 1024
"""Items that one batched job may hold."""
MAX_EXPIRES_IN_S = 30 * 86_400
"""The longest ``expires_in``, and the longest ``result_ttl``."""
MAX_METADATA_BYTES = 4096
"""Size of ``metadata`` as JSON."""

IDEMPOTENCY_KEY = r"^[\x21-\x7e]+$"

JobEvent = Literal["started", "progress", "ended"]
"""The events that a webhook can report."""

_CODES = frozenset(code.value for code in ErrorCode)

MAX_ERRORS = 60_000
"""Wrong values of a body up to which the first ones are named."""

SHARED, EACH = "one value for all", "one value per item"


class Sources(Protocol):
    """Looks up the media that a request names but does not hold: see ``modelmill_tasks.shared.sources``."""

    def take(self, value: str, kind: str) -> str:
        """The text to use for ``value``, a URL or ``file:`` id of an ``image`` or ``audio``.

        Raises:
            MediaError: it cannot be used.
        """
        ...


class Batched:
    """Marks a field that differs from item to item: ``image: Annotated[Image, Batched]``."""


def _strict_json(value: Any, info: ValidationInfo) -> Any:
    """Refuses NaN and infinities: the parser reads them, but JSON does not have them."""
    waiting = [] if (info.context or {}).get("trusted") else [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError("holds a number that JSON does not have: NaN, or one that is too large")
    return value


STRICT_JSON = AfterValidator(_strict_json)
"""Marks a field that takes any JSON: ``input: Annotated[Any, STRICT_JSON]``."""


class TaskConfig(BaseModel):
    """Base class of a task's ``config``, the options of the model. Unknown keys are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RequestOptions(BaseModel):
    """``options`` at top level: reserved for protocols that have this field; accepted and ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    use_cache: bool = True
    wait_for_model: bool = False


class TaskInput(BaseModel):
    """Base class of a task's input. The fields that are declared here concern the job, not the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lane: Lane = Field(Lane.NORMAL, description="Priority: interactive, normal or bulk.")
    expires_in: float | None = Field(
        None,
        gt=0,
        le=MAX_EXPIRES_IN_S,
        strict=True,
        allow_inf_nan=False,
        description="Seconds after which the job fails as expired if it has not started by then; "
        "at most 30 days.",
    )
    result_ttl: int | None = Field(
        None,
        ge=1,
        le=MAX_EXPIRES_IN_S,
        strict=True,
        description="Seconds for which the job can be read after its end, at most 30 days. If it is not "
        "set, the server's own time.",
    )
    metadata: Annotated[dict[str, Any] | None, STRICT_JSON] = Field(
        None,
        description=f"An object of your own, at most {MAX_METADATA_BYTES} bytes as JSON. The job shows it.",
    )
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        default=[],
        max_length=16,
        description="Words of your own, by which you can find the job. The job shows them.",
    )
    webhook: str | None = Field(
        None,
        max_length=2048,
        pattern=r"^https?://[^\s]+$",
        description="An http(s) URL that gets a POST for each event of the job, as Standard Webhooks say.",
    )
    webhook_events: list[JobEvent] = Field(
        default=["ended"], min_length=1, max_length=3, description="The events to report."
    )
    idempotency_key: str | None = Field(
        None,
        max_length=255,
        pattern=IDEMPOTENCY_KEY,
        description="The same as the header Idempotency-Key, for a request that is one line of many.",
    )
    options: RequestOptions | None = Field(None, description="Reserved; accepted and ignored.")

    @field_validator("metadata")
    @classmethod
    def _is_small(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        # Most that is too large is found without the text of all of it.
        if (
            json_size(value, MAX_METADATA_BYTES) > MAX_METADATA_BYTES
            or len(json.dumps(value, separators=(",", ":")).encode()) > MAX_METADATA_BYTES
        ):
            raise ValueError(f"is more than {MAX_METADATA_BYTES} bytes as JSON")
        return value


class TaskOutput(BaseModel):
    """Base class of a task's result for one item."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Example:
    """A request that works as it is, and the answer that it got."""

    input: dict[str, Any]
    output: dict[str, Any]
    model: str
    """The catalogued model that the example asks."""
    real: bool = True
    """Whether ``output`` is the real answer of that model. If not, it shows only the form of an answer."""


class TaskGroup(StrEnum):
    """The headings under which the README lists the tasks."""

    IMAGES = "Images"
    IMAGES_AND_TEXT = "Images and text"
    TEXT = "Text"
    SOUND = "Sound"
    OWN = "Your own"
    """Tasks whose questions and answers you define yourself, as those of plugins."""


@dataclass(frozen=True)
class Task:
    """A kind of question, with its contract.

    Attributes:
        name: The slug in the path, such as ``image-classification``.
        summary: One sentence for the documentation.
        input: The request for one item.
        output: The result for one item.
        example: A runnable example.
        group: The heading under which the README lists the task.
        samples: Makes that many unequal items for the conformance suite, as JSON. Without it, the suite puts
            other texts, images and sounds into the batched fields of the example.
    """

    name: str
    summary: str
    input: type[TaskInput]
    output: type[TaskOutput]
    example: Example
    group: TaskGroup = TaskGroup.OWN
    samples: Callable[[int], Sequence[dict[str, Any]]] | None = None

    def with_config_keys(self, config_keys: Sequence[str]) -> Task:
        """This task, with further keys in its ``config``, which a model's entry lists."""
        keys = tuple(config_keys)
        if keys and keys not in self._extended_by:
            self._extended_by[keys] = self._extended(keys)
        return self._extended_by[keys] if keys else self

    @cached_property
    def _extended_by(self) -> dict[tuple[str, ...], Task]:
        return {}

    def _extended(self, keys: tuple[str, ...]) -> Task:
        config: Any = self.input.model_fields["config"]
        if not isinstance(config.annotation, type) or not issubclass(config.annotation, BaseModel):
            # A free object, as in the task custom, accepts every key already.
            return self
        more: Any = dict.fromkeys(keys, (Annotated[Any, STRICT_JSON], None))
        wider = create_model(config.annotation.__name__, __base__=config.annotation, **more)
        fields: Any = {"config": (wider, Field(default_factory=wider, description=config.description))}
        return replace(self, input=create_model(self.input.__name__, __base__=self.input, **fields))

    @cached_property
    def batched_fields(self) -> tuple[str, ...]:
        """Names of the fields that are lists in a batched job."""
        names = tuple(name for name, field in self.input.model_fields.items() if _is_batched(field))
        if not names:
            raise TypeError(f"task {self.name}: mark at least one input field with Batched")
        return names

    @cached_property
    def shared_fields(self) -> tuple[str, ...]:
        """Names of the task's own fields that a batched job may give once for all items."""
        return tuple(
            name
            for name in self.input.model_fields
            if name not in self.batched_fields and name not in TaskInput.model_fields
        )

    @cached_property
    def batched_input(self) -> type[TaskInput]:
        """The request of a batched job: batched fields are lists, other fields single values or lists."""
        fields: dict[str, Any] = {}
        for name in self.batched_fields:
            field = self.input.model_fields[name]
            items: Any = Annotated[
                _type_of(field),
                Field(description=field.description, json_schema_extra=field.json_schema_extra),
            ]
            fields[name] = (
                Annotated[list[items], Field(min_length=1, max_length=MAX_ITEMS)],
                Field(description=f"{field.description or name}, one per item"),
            )
        for name in self.shared_fields:
            field = self.input.model_fields[name]
            one = _type_of(field)
            union = Annotated[
                Annotated[one, Tag(SHARED)] | Annotated[list[one], Field(max_length=MAX_ITEMS), Tag(EACH)],  # type: ignore[valid-type]
                Discriminator(_nesting_of(field)),
            ]
            default = ... if field.is_required() else field.get_default(call_default_factory=True)
            fields[name] = (union, Field(default, description=field.description))
        return create_model(
            f"Batched{self.input.__name__}", __base__=TaskInput, __module__=self.input.__module__, **fields
        )

    @cached_property
    def _most_elements(self) -> tuple[int, int]:
        """Values that the body of a plain and of a batched job can hold."""
        job = frozenset(TaskInput.model_fields)
        # The fields of `TaskInput` are small: `metadata` is the largest of them.
        plain, batched = (
            min(MAX_ELEMENTS, most_elements(model.model_json_schema(), without=job) + MAX_METADATA_BYTES)
            for model in (self.input, self.batched_input)
        )
        return plain, batched

    def parse(
        self,
        body: bytes | str,
        *,
        batched: bool = False,
        trusted: bool = False,
        sources: Sources | None = None,
        limits: MediaLimits | None = None,
    ) -> TaskInput:
        """Validates a JSON request body.

        Args:
            body: The JSON text.
            batched: Whether it is the body of a batched job.
            trusted: The API accepted this body before, so its media are not checked again.
            sources: Looks up media that the request names; without it, such media are refused.
            limits: The limits of media in the request; without it, those of this process's environment.

        Raises:
            ModelmillError: ``invalid_input`` or a media code. It names the fields and holds no values.
        """
        model = self.batched_input if batched else self.input
        if not trusted:
            check_body(body, self._most_elements[batched])
        context = {"trusted": trusted, "sources": sources, "limits": limits}
        try:
            request = model.model_validate_json(body, context=context)
        except ValidationError as error:
            raise _not_utf8(body) or _invalid(error) from None
        if batched:
            self._same_lengths(request)
        return request

    def items(self, request: TaskInput) -> list[TaskInput]:
        """The items of a parsed request: for a plain job, the request itself; else one input per item."""
        if isinstance(request, self.input):
            return [request]
        count = len(getattr(request, self.batched_fields[0]))
        columns = {name: getattr(request, name) for name in self.batched_fields}
        for name in self.shared_fields:
            value = getattr(request, name)
            columns[name] = value if self.has_one_value_per_item(name, value) else [value] * count
        return [
            self.input.model_construct(**{name: column[index] for name, column in columns.items()})
            for index in range(count)
        ]

    def has_one_value_per_item(self, name: str, value: Any) -> bool:
        """Whether a value of field ``name`` is a list with one value per item, and not one value for all.

        If the field itself is a list, only a list of lists has one value per item.
        """
        return _nesting_of(self.input.model_fields[name])(value) == EACH

    def group_key(self, item: TaskInput) -> Hashable:
        """Two items with equal keys may share a forward pass. The key is all fields that are not batched."""
        return item.model_dump_json(include=set(self.shared_fields))

    def _same_lengths(self, request: TaskInput) -> None:
        count = len(getattr(request, self.batched_fields[0]))
        for name in (*self.batched_fields[1:], *self.shared_fields):
            value = getattr(request, name)
            if name in self.shared_fields and not self.has_one_value_per_item(name, value):
                continue
            if len(value) != count:
                message = f"has {len(value)} values, but {self.batched_fields[0]} has {count}"
                raise invalid_field(name, message)


def _marks_batched(mark: object) -> bool:
    return mark is Batched or isinstance(mark, Batched)


def _is_batched(field: FieldInfo) -> bool:
    return any(map(_marks_batched, field.metadata))


def _type_of(field: FieldInfo) -> Any:
    """The field's type with its constraints, for use inside a list."""
    annotation: Any = field.annotation
    for mark in field.metadata:
        if not _marks_batched(mark):
            annotation = Annotated[annotation, mark]
    return annotation


def _nesting_of(field: FieldInfo) -> Callable[[Any], str]:
    """A function that says whether a field's value in a batched job is ``SHARED`` or ``EACH``."""
    kinds = (field.annotation, *get_args(field.annotation))
    return _nested if any(get_origin(kind) is list for kind in kinds) else _listed


def _listed(value: Any) -> str:
    return EACH if isinstance(value, list) else SHARED


def _nested(value: Any) -> str:
    # The field itself is a list, so only a list of lists can mean one value per item.
    return EACH if isinstance(value, list) and value and isinstance(value[0], list) else SHARED


def _not_utf8(body: bytes | str) -> ModelmillError | None:
    """The error of a body whose text is in another encoding."""
    try:
        body.decode() if isinstance(body, bytes) else body.encode()
    except UnicodeError as error:
        place = f"see byte {error.start}"  # type: ignore[attr-defined]
        message = f"The body is not UTF-8: {place}. Encode it as UTF-8."
        return ModelmillError(ErrorCode.INVALID_INPUT, message, fields=[FieldError("body", "is not UTF-8")])
    return None


def _invalid(error: ValidationError) -> ModelmillError:
    """Makes one error of pydantic's report: field paths and messages, never the input."""
    if error.error_count() > MAX_ERRORS:
        # pydantic would list all of them, at half a kilobyte each.
        message = f"The body holds {error.error_count()} values that are not valid for this task. Send fewer."
        return ModelmillError(ErrorCode.INVALID_INPUT, message)
    fields: list[FieldError] = []
    code = ErrorCode.INVALID_INPUT
    problems: Sequence[Any] = error.errors(include_input=False, include_url=False)
    for problem in problems[:20]:
        path = ".".join(str(part) for part in problem["loc"] if part not in (SHARED, EACH))
        if problem["type"] in _CODES:
            code = ErrorCode(problem["type"])
        # An unknown field's name is the caller's own text, so its length is limited.
        fields.append(FieldError(path[:200] or "body", problem["msg"]))
    first = fields[0]
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    return ModelmillError(code, f"{first.field}: {first.message}{more}", fields=fields)


def field_problem(code: ErrorCode, message: str) -> PydanticCustomError:
    """For validators: a problem of one field, which reaches the caller with this code."""
    # The message is a value of the template, since pydantic would interpret braces in the template itself.
    return PydanticCustomError(code.value, "{message}", {"message": message})
