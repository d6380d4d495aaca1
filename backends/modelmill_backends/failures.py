"""Errors of a load, with reasons that an operator can act on."""

from __future__ import annotations

import logging
from pathlib import Path

from modelmill.catalogue import ModelEntry
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.extras import EXTRAS, install_command

logger = logging.getLogger(__name__)


def load_failed(entry: ModelEntry, reason: str) -> ModelmillError:
    """``model_load_failed`` for this entry. Callers see the reason: put no path of the server into it."""
    return ModelmillError(ErrorCode.MODEL_LOAD_FAILED, f"Model {entry.name}: {reason}")


def module_missing(entry: ModelEntry, module: str | None, extras: tuple[str, ...] = ()) -> ModelmillError:
    """A Python package is not installed; names the extras of this distribution that contain it."""
    known = EXTRAS.get((module or "").partition(".")[0])
    wanted = extras or entry.requires or ((known,) if known else ())
    command = install_command(*wanted) if wanted else "install it where the worker runs"
    if entry.source and entry.source.install and module == entry.source.package:
        command = f"pip install {entry.source.install}"
    return load_failed(entry, f"the Python package {module or 'it needs'} is not installed: {command}")


def library_failed(entry: ModelEntry, library: str, folder: Path, error: Exception) -> ModelmillError:
    """A library raised while it loaded the weights in ``folder``."""
    logger.error("model %s: %s said: %s", entry.name, library, error)
    if isinstance(error, ImportError):
        return load_failed(entry, f"a Python package is missing: {first_line(error, folder)}")
    if type(error).__name__ == "OutOfMemoryError":
        return load_failed(entry, "the GPU has too little free memory for it")
    return load_failed(entry, f"{library} cannot load it: {first_line(error, folder)}")


def torch_without_gpu(entry: ModelEntry) -> ModelmillError:
    """The worker's device is a GPU, but PyTorch cannot use one."""
    return load_failed(
        entry,
        "the worker uses a GPU, but PyTorch sees none: "
        "the driver is missing or the installed PyTorch is for CPUs only",
    )


class NoGpuRuntimeError(ModelmillError):
    """``model_load_failed``: the installed runtime is for CPUs only. The model may load on a CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one of its causes, says that memory ran out.

    Recognised are MemoryError, torch's error on any device, and ONNX Runtime's, which has no own class.
    """
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if any(words in text for words in ("Failed to allocate memory", "bad_alloc", "CUDA out of memory")):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and is_out_of_memory(before)


def first_line(error: Exception, folder: Path) -> str:
    """The first line of an error. The path of ``folder`` is removed, because callers see the line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].replace(str(folder), "its folder")[:300]
