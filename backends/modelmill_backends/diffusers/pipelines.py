"""Loads pipelines of ``diffusers`` from safetensors, without foreign code, and frees them."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from modelmill.catalogue import ModelEntry
from modelmill.errors import ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device
from modelmill_backends.failures import (
    first_line,
    library_failed,
    load_failed,
    module_missing,
    torch_without_gpu,
)
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.shared.literal import Spacer, read_literally
from modelmill_backends.source import locate

LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
"""Libraries that a pipeline's parts may come from; ``stable_diffusion`` is diffusers' safety checker."""


TAKE_PLAIN_TEXT = ("CLIP", "T5")
"""Tokenizers to which pipelines give the prompt alone. To others they give it inside of a chat."""


class DiffusersOptions(RunnerOptions):
    """Options of a catalogue entry for any model of this backend."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Type of the weights: auto is float32 on the CPU and float16 on a GPU."
    )
    variant: str | None = Field(
        None,
        pattern=r"^\w+$",
        description="Which of several sets of weight files to read, such as fp16.",
    )
    num_inference_steps: int | None = Field(
        None,
        ge=1,
        le=200,
        description="Steps if the caller sets no number; default: the pipeline's.",
    )
    guidance_scale: float | None = Field(
        None,
        ge=0,
        le=50,
        description="Guidance if the caller sets none; 0 for distilled (turbo) models.",
    )


@dataclass(slots=True)
class Loaded:
    """A pipeline on its device."""

    pipeline: Any
    device: Device
    options: DiffusersOptions
    tokenizers: tuple[Any, ...] = ()
    """Copies of those of its text encoders, for threads that prepare items."""
    tokenizing: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Lock of ``tokenizers``."""
    literal: Callable[[str], str] = str
    """Makes a prompt that spells out control tokens harmless, if the tokenizers do not do so."""

    def close(self) -> None:
        """Frees the device's memory, including the memory that PyTorch keeps for later use."""
        self.pipeline = None
        self.tokenizers = ()
        gc.collect()
        if self.device.kind == "cuda":
            import torch

            torch.cuda.empty_cache()


def load_pipeline(context: LoadContext, auto_class: str) -> Loaded:
    """Loads the entry's pipeline by one of the library's ``AutoPipeline`` classes.

    Args:
        context: The context of the model.
        auto_class: Name of the class, such as ``AutoPipelineForText2Image``.

    Raises:
        ModelmillError: ``model_load_failed``: no GPU, no weights, no safetensors, foreign code, no library.
    """
    entry, device = context.entry, context.device
    options = read_options(entry, DiffusersOptions)
    try:
        import diffusers
        import torch
    except ModuleNotFoundError as error:
        raise module_missing(entry, error.name, ("diffusers",)) from None
    if device.kind == "cuda" and not torch.cuda.is_available():
        raise torch_without_gpu(entry)
    _silence(diffusers)
    torch.set_num_threads(device.threads)
    # The configurations come first: they say which of a repository's many weight files belong together.
    folder = locate(entry, ())
    index = _read_index(entry, folder)
    folder = locate(entry, _weight_files(index, options.variant))
    arguments = _arguments(diffusers, torch, index, options, device)
    try:
        pipeline = getattr(diffusers, auto_class).from_pretrained(folder, **arguments)
        pipeline = pipeline.to(device.torch_name)
    except (ImportError, OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise _explained(entry, folder, error) from error
    pipeline.set_progress_bar_config(disable=True)
    decoder: Any = getattr(pipeline, "vae", None)
    if hasattr(decoder, "enable_slicing"):
        # Decoding needs the most memory, so it decodes one image of a batch at a time.
        decoder.enable_slicing()
    tokenizers = tuple(part for part in pipeline.components.values() if hasattr(part, "split_special_tokens"))
    wrapped = []
    for tokenizer in tokenizers:
        if type(tokenizer).__name__.startswith(TAKE_PLAIN_TEXT):
            read_literally(tokenizer)
        else:
            wrapped.append(tokenizer)
    literal = Spacer(wrapped) if wrapped else str
    # Copies: the library changes a tokenizer at each call, and the device's thread uses the pipeline's own.
    copies = tuple(map(copy.deepcopy, tokenizers))
    return Loaded(pipeline, device, options, copies, literal=literal)


def _arguments(
    diffusers: Any, torch: Any, index: dict[str, Any], options: DiffusersOptions, device: Device
) -> dict[str, Any]:
    name = options.dtype if options.dtype != "auto" else "float16" if device.kind == "cuda" else "float32"
    arguments: dict[str, Any] = {
        "dtype": getattr(torch, name),
        "variant": options.variant,
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    kind: Any = getattr(diffusers, index["_class_name"], None)
    if kind is not None and "add_watermarker" in inspect.signature(kind).parameters:
        # The library adds a watermark where a further package is installed: equal weights would then give
        # unequal images.
        arguments["add_watermarker"] = False
    return arguments


def _silence(diffusers: Any) -> None:
    """Turns off progress bars, which would fill the log."""
    import transformers

    for library in (diffusers, transformers):
        logs: Any = library.utils.logging
        logs.disable_progress_bar()


def _read_index(entry: ModelEntry, folder: Path) -> dict[str, Any]:
    """``model_index.json``. It must ask only for classes of the known libraries."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise load_failed(
            entry, "its source is not a pipeline of diffusers: model_index.json is missing or damaged"
        ) from None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise load_failed(entry, "it contains a pipeline as Python code, which is never run")
    for part, (library, _) in _parts(index).items():
        if not part.isidentifier():
            raise load_failed(entry, f"its model_index.json names a part {part[:100]!r}, which is no name")
        if library is not None and library not in LIBRARIES:
            raise load_failed(
                entry, f"its part {part!r} comes from {str(library)[:100]!r}; only diffusers' own are loaded"
            )
    return index


def _parts(index: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """A pipeline's parts: name → (library, class); both are None for an absent part."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2
    }


def _weight_files(index: dict[str, Any], variant: str | None) -> list[str]:
    """Patterns of the weight files of one variant; repositories hold several variants and formats."""
    parts = [name for name, (library, _) in _parts(index).items() if library is not None]
    if variant:
        return [
            f"{part}/*{middle}.safetensors"
            for part in parts
            for middle in (f".{variant}", f".{variant}-?????-of-?????", f"-?????-of-?????.{variant}")
        ]
    return [
        f"{part}/{stem}{middle}.safetensors"
        for part in parts
        for stem in ("model", "diffusion_pytorch_model")
        for middle in ("", "-?????-of-?????")
    ]


def _explained(entry: ModelEntry, folder: Path, error: Exception) -> ModelmillError:
    if isinstance(error, OSError) and "safetensors" in str(error):
        said = first_line(error, folder)
        return load_failed(
            entry, f"a part has no safetensors weights, and pickles (.bin) are never read: {said}"
        )
    return library_failed(entry, "diffusers", folder, error)
