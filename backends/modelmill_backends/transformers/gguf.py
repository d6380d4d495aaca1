"""GGUF files: weights of few bits in one file, without code. They are unpacked once to safetensors.

The library can load a GGUF file itself, but that takes seconds for each part of it, at every load.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelmill_backends.contract import LoadContext
from modelmill_backends.failures import first_line, load_failed, module_missing
from modelmill_backends.shared.artifacts import fingerprint, made_once

logger = logging.getLogger(__name__)

UNPACK_VERSION = 1
"""Part of each folder's name. Increase it when the written files change."""


def unpacked(context: LoadContext, file: Path) -> Path:
    """A folder with the file's model as safetensors in half precision, its configuration and tokenizer.

    If the folder does not exist yet, it is made now: in about 12 s for 135 million weights.

    Raises:
        ModelmillError: ``model_load_failed``: the package ``gguf`` is missing, or the cache is read-only.
    """
    try:
        import gguf  # noqa: F401 - the library needs it later, with a less clear error
    except ModuleNotFoundError as error:
        raise module_missing(context.entry, error.name) from None
    # The folder is not the model's own, so that entries with the same file share the result.
    name = f"{file.stem}-{fingerprint(file, UNPACK_VERSION)}"
    folder = context.settings.cache_dir / "transformers" / name
    return made_once(context.entry, folder, lambda target: _unpack(context, file, target))


@contextmanager
def _few_collections() -> Iterator[None]:
    """Python looks for garbage less often: reading a vocabulary makes a million objects, which all stay.

    Otherwise the search takes a third of the time.
    """
    usual = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@_few_collections()
def _unpack(context: LoadContext, file: Path, target: Path) -> None:
    import torch
    import transformers

    logger.info("model %s: unpacking its GGUF file, once", context.entry.name)
    started = time.monotonic()
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    models: Any = transformers.AutoModelForCausalLM
    try:
        model = models.from_pretrained(
            file.parent,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True),
            **options,
        )
    except (ImportError, OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        logger.exception("model %s: reading %s failed", context.entry.name, file.name)
        said = f"{type(error).__name__}: {first_line(error, file.parent)}"
        raise load_failed(context.entry, f"its GGUF file cannot be read: {said}") from error
    # Half precision holds 4 to 8 bits and their scale, with rounding far below their own.
    model = model.half()
    # With these attributes, a load would look for the GGUF file again.
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if name in vars(model):
            delattr(model, name)
    model.save_pretrained(target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **options)  # nosec B615
    tokenizer.save_pretrained(target)
    logger.info("model %s: unpacked in %.1f s", context.entry.name, time.monotonic() - started)
