"""Entries for models outside the catalogue: Python code names a hub repository, a folder or a file."""

from __future__ import annotations

import re
from pathlib import Path

from modelmill.catalogue import RESERVED_NAMES, ModelEntry, Source
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.registry import all_runners
from modelmill_backends.source import locate

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_path(name: str) -> bool:
    """Whether ``name`` is a path and not the name of a model. The path need not exist."""
    return name.startswith(("/", "./", "../", "~")) or name.endswith(".gguf") or Path(name).is_dir()


def folder_entry(folder: Path, backend: str | None) -> ModelEntry:
    """An entry for a local folder, or for a GGUF file.

    Raises:
        ModelmillError: ``model_not_found``: it does not exist, or it holds no weights that Modelmill reads.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir() and not (folder.suffix == ".gguf" and folder.is_file()):
        raise ModelmillError(ErrorCode.MODEL_NOT_FOUND, f"There is no folder {folder}.")
    backend = backend or _backend_of(folder)
    if backend is None:
        raise ModelmillError(
            ErrorCode.MODEL_NOT_FOUND,
            f"The folder {folder} holds no model: no model_index.json, no safetensors and no ONNX file. "
            "Pickles (.bin, .pt) are never read.",
        )
    return _entry(folder.name, backend, Source(folder=folder))


def hub_entry(hub_id: str, backend: str | None, revision: str | None) -> ModelEntry:
    """An entry for a hub repository. Fetches its configuration to find the backend.

    Raises:
        ModelmillError: ``model_load_failed``: the hub cannot be reached, or has no such repository.
    """
    source = Source(hub=hub_id, revision=revision)
    if backend is None:
        folder = locate(_entry(hub_id, "transformers", source), ())
        # The weights are fetched later, when a runner asks for them. Most repositories have safetensors.
        backend = "diffusers" if (folder / "model_index.json").is_file() else "transformers"
    return _entry(hub_id, backend, source)


def _backend_of(folder: Path) -> str | None:
    if (folder / "model_index.json").is_file():
        return "diffusers"
    if folder.suffix == ".gguf" or any(folder.glob("*.safetensors")):
        return "transformers"
    return "onnx" if any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx")) else None


def _entry(called: str, backend: str, source: Source) -> ModelEntry:
    tasks = sorted(task for of, task, name in all_runners() if of == backend and name == "default")
    if not tasks:
        known = ", ".join(sorted({of for of, _, _ in all_runners()}))
        raise ModelmillError(
            ErrorCode.INVALID_INPUT, f"backend: there is no backend {backend!r}; choose one of {known}."
        )
    name = re.sub(r"[^a-z0-9_-]+", "-", called.lower()).strip("-")[:80]
    if len(name) < 3 or name in RESERVED_NAMES:
        name = f"model-{name}"
    return ModelEntry(name=name, description=called, backend=backend, source=source, tasks=tuple(tasks))
