"""Models that are parts of other models: an entry's option names their catalogue entry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.registry import find_runner


def load_part(context: LoadContext, option: str, name: str, task: str) -> Runner[Any, Any]:
    """Loads the model that another model uses for ``task``.

    Args:
        context: The other model's.
        option: The option of its entry that names the part, such as ``text_encoder``.
        name: Name of the part's catalogue entry.
        task: The task that the part must answer.

    Raises:
        ModelmillError: ``model_load_failed``: there is no such entry, it does not answer ``task``, or it does
            not load.
    """
    try:
        entry = context.catalogue.find(name)
    except ModelmillError as error:
        raise load_failed(context.entry, f"option {option!r}: {error.message}") from None
    if entry.name == context.entry.name or task not in entry.tasks:
        raise load_failed(context.entry, f"option {option!r}: {name} does not answer {task}")
    own = replace(context, entry=entry)
    try:
        runner_class = find_runner(entry, task)
        return runner_class(runner_class.load(own), own)
    except ModelmillError as error:
        if error.code is not ErrorCode.MODEL_LOAD_FAILED:
            raise
        what = option.replace("_", " ")
        raise load_failed(context.entry, f"its {what} does not load. {error.message}") from error
