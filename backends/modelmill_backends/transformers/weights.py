"""Loads models of ``transformers`` from safetensors or GGUF onto the device, and frees them."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from modelmill.catalogue import ModelEntry
from modelmill.errors import ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device
from modelmill_backends.failures import library_failed, load_failed, module_missing, torch_without_gpu
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.shared.literal import read_literally
from modelmill_backends.source import locate
from modelmill_backends.transformers.gguf import unpacked

NAMED = (".safetensors", ".safetensors.index.json")
"""Endings of the weights that a configuration may name."""
ADAPTER = "adapter_config.json"
REMOTE_CODE = "it contains Python code; set options.trust_remote_code = true if you trust it"


class TransformersOptions(RunnerOptions):
    """Options of a catalogue entry for any model of this backend."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Type of the weights: auto is float32 on the CPU and float16 on a GPU."
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the weights. If you set this, pin source.revision.",
    )
    needs_remote_code: bool = Field(
        False, description="Refuse to load the model without its own code: it would load but answer wrongly."
    )


@dataclass(slots=True)
class Loaded:
    """A model on its device, in eval mode, and the parts of its processor.

    Attributes:
        tokenizing: Lock of the tokenizer. All runners of the model share the tokenizer, and the library sets
            truncation and padding on it at each call, so threads must take turns. Not reentrant.
    """

    model: Any
    device: Device
    folder: Path
    tokenizer: Any = None
    image_processor: Any = None
    tokenizing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def to_device(self, **arrays: Any) -> dict[str, Any]:
        """Numpy arrays of whole numbers, such as token ids, as tensors on the device."""
        import torch

        return {name: torch.from_numpy(array).to(self.device.torch_name) for name, array in arrays.items()}

    def stacked_on_device(self, rows: Sequence[Any]) -> Any:
        """Numpy arrays of one shape and type as one tensor on the device, with a batch axis."""
        import numpy as np
        import torch

        # The GPU reads pinned memory directly; other memory the driver would first copy to pinned memory.
        pinned = self.device.kind == "cuda"
        host = torch.empty(
            (len(rows), *rows[0].shape), dtype=getattr(torch, rows[0].dtype.name), pin_memory=pinned
        )
        np.stack(rows, out=host.numpy())
        return host.to(self.device.torch_name, non_blocking=pinned)

    def in_model_dtype(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The same inputs, those of floating point in the type of the model's weights."""
        dtype = self.model.dtype
        return {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }

    def close(self) -> None:
        """Frees the device's memory, including the memory that PyTorch keeps for later use."""
        self.model = self.tokenizer = self.image_processor = None
        gc.collect()
        if self.device.kind == "cuda":
            import torch

            torch.cuda.empty_cache()


def load_pretrained(
    context: LoadContext, auto_class: str, *, tokenizer: bool = False, images: bool = False
) -> Loaded:
    """Loads the entry's model by one of the library's ``Auto`` classes.

    Args:
        context: The context of the model.
        auto_class: Name of the class, such as ``AutoModelForImageClassification``.
        tokenizer: Load the tokenizer too.
        images: Load the image processor too.

    Raises:
        ModelmillError: ``model_load_failed``: no GPU, no weights, no safetensors, a missing package.
    """
    entry = context.entry
    options = read_options(entry, TransformersOptions)
    if options.needs_remote_code and not options.trust_remote_code:
        raise load_failed(entry, REMOTE_CODE)
    try:
        import torch
        import transformers
        from safetensors import SafetensorError
    except ModuleNotFoundError as error:
        raise module_missing(entry, error.name, ("transformers",)) from None
    if context.device.kind == "cuda" and not torch.cuda.is_available():
        raise torch_without_gpu(entry)
    # Progress bars would fill the log.
    logs: Any = transformers.utils.logging
    logs.disable_progress_bar()
    torch.set_num_threads(context.device.threads)
    folder = _weights_folder(context, options)
    common: dict[str, Any] = {"trust_remote_code": options.trust_remote_code, "local_files_only": True}
    try:
        model, report = getattr(transformers, auto_class).from_pretrained(
            folder,
            use_safetensors=True,
            dtype=_dtype(torch, options, context.device),
            output_loading_info=True,
            **common,
        )
        _refuse_random_weights(entry, model, report["missing_keys"])
        model = model.eval().requires_grad_(False).to(context.device.torch_name)
        loaded = Loaded(model, context.device, folder)
        if tokenizer:
            # This reads a folder; the revision was pinned when the folder was fetched.
            own = transformers.AutoTokenizer.from_pretrained(folder, **common)  # nosec B615
            loaded.tokenizer = read_literally(own)
        if images:
            processors: Any = transformers.AutoImageProcessor
            loaded.image_processor = processors.from_pretrained(folder, **common)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _explained(entry, folder, error) from error
    return loaded


def _weights_folder(context: LoadContext, options: TransformersOptions) -> Path:
    folder = locate(context.entry, ("*.safetensors", *(["*.py"] if options.trust_remote_code else [])))
    if folder.suffix == ".gguf":
        folder = unpacked(context, folder)
    if (folder / ADAPTER).is_file():
        raise load_failed(
            context.entry,
            "it is an adapter, which names another model as its base; merge both and name the result",
        )
    _check_named_weights(context.entry, folder)
    if not any(folder.glob("*.safetensors")):
        raise load_failed(
            context.entry,
            "its source holds no safetensors weights, and pickles (.bin, .pt) are never read; "
            "name a revision that has them",
        )
    return folder


def _check_named_weights(entry: ModelEntry, folder: Path) -> None:
    """Refuses a configuration that names its weights otherwise than as a safetensors file of its folder."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError):
        # The library says what is wrong with it.
        return
    if named is None:
        return
    shown = repr(str(named)[:100])
    if not isinstance(named, str) or Path(named).name != named or not named.endswith(NAMED):
        raise load_failed(
            entry, f"its configuration names the weights {shown}, which is no safetensors file of its folder"
        )


def _refuse_random_weights(entry: ModelEntry, model: Any, missing: Collection[str]) -> None:
    """Refuses a checkpoint that lacks weights of the model.

    The library fills them at random and only writes a line to the log; the answers would be noise with high
    scores. Poolers may be missing: many checkpoints have none, and code that needs a pooler checks it itself.
    """
    parameters = {name for name, _ in model.named_parameters()}
    lacking = sorted(name for name in parameters.intersection(missing) if "pooler" not in name)
    if lacking:
        raise load_failed(
            entry,
            f"its weights were not made for this task: a {type(model).__name__} needs {lacking[0]} "
            f"{f'and {len(lacking) - 1} more ' if len(lacking) > 1 else ''}in addition",
        )


def _explained(entry: ModelEntry, folder: Path, error: Exception) -> ModelmillError:
    if "trust_remote_code" in str(error):
        return load_failed(entry, REMOTE_CODE)
    return library_failed(entry, "transformers", folder, error)


def _dtype(torch: Any, options: TransformersOptions, device: Device) -> Any:
    name = options.dtype
    if name == "auto":
        name = "float16" if device.kind == "cuda" else "float32"
    return getattr(torch, name)
