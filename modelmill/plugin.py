"""The public names for tasks, runners and plugins, as in ``from modelmill.plugin import Task``.

For a task:

- ``Task``: a contract. A module of tasks defines one and calls it ``TASK``.
- ``TaskInput``, ``TaskOutput``, ``TaskConfig``: base classes of its input, its output and its ``config``.
- ``Batched``: marks an input field that is a list in a batched job.
- ``Example``: a request and its answer, for the documentation and the tests.
- ``TaskGroup``: the heading under which the README lists the task.
- ``Part``: base class of objects inside inputs and outputs.
- ``Text``, ``Image``, ``Audio``: types of input fields, with their limits.
- ``STRICT_JSON``: marks a field that takes any JSON value.

For a runner:

- ``Runner``: base class; one backend's way to answer one task.
- ``LoadContext``: what ``load`` gets: the model's entry, the device, the settings.
- ``Prepared``: one item, ready for ``forward``.
- ``RunnerOptions``, ``read_options``: the options that a models file may set, and how to read them.
- ``locate``: the folder or file that holds a model's weights.
- ``load_failed``: the error that ``load`` raises, with a reason for the operator.
- ``warn``, ``WarningCode``: tell the caller that something of the input was lost.
- ``open_image``, ``open_audio``: decode what an ``Image`` or ``Audio`` field holds.

For a proof:

- ``Specimen``: a small model with inputs that proves a runner.
- ``Inputs``: the type of its inputs.
- ``ModelEntry``, ``Source``: a model of the catalogue, and where its weights are.
- ``CHECKS``, ``LoadedSpecimen``, ``SkippedError``: the checks of ``modelmill check``, for your own tests.

For errors:

- ``ModelmillError``: an error with a code and a sentence for the caller.
- ``ErrorCode``: the codes.
- ``FieldError``: what is wrong with one field of a request.
- ``invalid_field``: makes the ``ModelmillError`` for one wrong field.

A name's module is imported when the name is first used. So an API process that serves a plugin's task
imports no backend.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelmill.catalogue import ModelEntry as ModelEntry
    from modelmill.catalogue import Source as Source
    from modelmill.errors import ErrorCode as ErrorCode
    from modelmill.errors import FieldError as FieldError
    from modelmill.errors import ModelmillError as ModelmillError
    from modelmill.errors import invalid_field as invalid_field
    from modelmill_backends.conformance import CHECKS as CHECKS
    from modelmill_backends.conformance import LoadedSpecimen as LoadedSpecimen
    from modelmill_backends.conformance import SkippedError as SkippedError
    from modelmill_backends.conformance import Specimen as Specimen
    from modelmill_backends.conformance.specimen import Inputs as Inputs
    from modelmill_backends.contract import LoadContext as LoadContext
    from modelmill_backends.contract import Prepared as Prepared
    from modelmill_backends.contract import Runner as Runner
    from modelmill_backends.failures import load_failed as load_failed
    from modelmill_backends.options import RunnerOptions as RunnerOptions
    from modelmill_backends.options import read_options as read_options
    from modelmill_backends.shared.audio import open_audio as open_audio
    from modelmill_backends.source import locate as locate
    from modelmill_tasks.contract import STRICT_JSON as STRICT_JSON
    from modelmill_tasks.contract import Batched as Batched
    from modelmill_tasks.contract import Example as Example
    from modelmill_tasks.contract import Task as Task
    from modelmill_tasks.contract import TaskConfig as TaskConfig
    from modelmill_tasks.contract import TaskGroup as TaskGroup
    from modelmill_tasks.contract import TaskInput as TaskInput
    from modelmill_tasks.contract import TaskOutput as TaskOutput
    from modelmill_tasks.item_warnings import WarningCode as WarningCode
    from modelmill_tasks.item_warnings import warn as warn
    from modelmill_tasks.shared.audio import Audio as Audio
    from modelmill_tasks.shared.fields import Part as Part
    from modelmill_tasks.shared.fields import Text as Text
    from modelmill_tasks.shared.images import Image as Image
    from modelmill_tasks.shared.images import open_image as open_image

_MODULES = {
    "Audio": "modelmill_tasks.shared.audio",
    "Batched": "modelmill_tasks.contract",
    "LoadedSpecimen": "modelmill_backends.conformance",
    "CHECKS": "modelmill_backends.conformance",
    "ErrorCode": "modelmill.errors",
    "Example": "modelmill_tasks.contract",
    "FieldError": "modelmill.errors",
    "Image": "modelmill_tasks.shared.images",
    "Inputs": "modelmill_backends.conformance.specimen",
    "LoadContext": "modelmill_backends.contract",
    "ModelEntry": "modelmill.catalogue",
    "ModelmillError": "modelmill.errors",
    "Part": "modelmill_tasks.shared.fields",
    "Prepared": "modelmill_backends.contract",
    "Runner": "modelmill_backends.contract",
    "RunnerOptions": "modelmill_backends.options",
    "STRICT_JSON": "modelmill_tasks.contract",
    "SkippedError": "modelmill_backends.conformance",
    "Source": "modelmill.catalogue",
    "Specimen": "modelmill_backends.conformance",
    "Task": "modelmill_tasks.contract",
    "TaskConfig": "modelmill_tasks.contract",
    "TaskGroup": "modelmill_tasks.contract",
    "TaskInput": "modelmill_tasks.contract",
    "TaskOutput": "modelmill_tasks.contract",
    "Text": "modelmill_tasks.shared.fields",
    "WarningCode": "modelmill_tasks.item_warnings",
    "invalid_field": "modelmill.errors",
    "load_failed": "modelmill_backends.failures",
    "locate": "modelmill_backends.source",
    "open_audio": "modelmill_backends.shared.audio",
    "open_image": "modelmill_tasks.shared.images",
    "read_options": "modelmill_backends.options",
    "warn": "modelmill_tasks.item_warnings",
}

__all__ = [
    "CHECKS",
    "STRICT_JSON",
    "Audio",
    "Batched",
    "ErrorCode",
    "Example",
    "FieldError",
    "Image",
    "Inputs",
    "LoadContext",
    "LoadedSpecimen",
    "ModelEntry",
    "ModelmillError",
    "Part",
    "Prepared",
    "Runner",
    "RunnerOptions",
    "SkippedError",
    "Source",
    "Specimen",
    "Task",
    "TaskConfig",
    "TaskGroup",
    "TaskInput",
    "TaskOutput",
    "Text",
    "WarningCode",
    "invalid_field",
    "load_failed",
    "locate",
    "open_audio",
    "open_image",
    "read_options",
    "warn",
]


def __getattr__(name: str) -> object:
    """Imports a name's module when the name is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module 'modelmill.plugin' has no attribute {name!r}")
    from importlib import import_module

    from modelmill.extras import naming_extras

    with naming_extras():
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
