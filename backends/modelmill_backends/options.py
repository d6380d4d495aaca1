"""Reads an entry's ``options`` strictly: an unknown option is refused, as it is probably misspelt."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from modelmill.catalogue import ModelEntry
from modelmill_backends.failures import load_failed


class RunnerOptions(BaseModel):
    """Base of the options of a runner. Runners that can share an entry share one class of options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


OptionsType = TypeVar("OptionsType", bound=RunnerOptions)


def read_options(entry: ModelEntry, kind: type[OptionsType]) -> OptionsType:
    """The entry's options as ``kind``.

    Raises:
        ModelmillError: ``model_load_failed``: names the wrong option and the known ones.
    """
    try:
        return kind.model_validate(entry.options)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields) or "none"
            raise load_failed(entry, f"unknown option {name!r}; its runner knows: {known}") from None
        raise load_failed(entry, f"option {name!r}: {problem['msg']}") from None
