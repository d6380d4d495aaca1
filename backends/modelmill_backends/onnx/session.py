"""Sessions of ONNX Runtime. Only this module chooses providers and threads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from modelmill.errors import ErrorCode
from modelmill.extras import install_command
from modelmill_backends.contract import LoadContext
from modelmill_backends.failures import NoGpuRuntimeError, load_failed, module_missing

logger = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
_ERRORS_ONLY = 3


def open_session(model: Path, context: LoadContext) -> Any:
    """An ``InferenceSession`` on the context's device.

    Raises:
        NoGpuRuntimeError: the device is a GPU, and the installed onnxruntime is for CPUs only.
        ModelmillError: ``model_load_failed``: no onnxruntime, or it fails to use the GPU.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise module_missing(context.entry, error.name, ("onnx",)) from None
    providers = _providers(onnxruntime, context)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = context.device.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Idle threads that spin would use the cores on which the next batch is decoded.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    if context.device.kind == "cuda" and CUDA not in session.get_providers():
        # ONNX Runtime then uses the CPU and only writes a log line.
        raise load_failed(
            context.entry,
            "ONNX Runtime cannot use the GPU: its CUDA or cuDNN libraries are missing or of another version",
        )
    return session


def _providers(onnxruntime: Any, context: LoadContext) -> list[Any]:
    if context.device.kind == "cpu":
        return [CPU]
    if CUDA not in onnxruntime.get_available_providers():
        raise NoGpuRuntimeError(
            ErrorCode.MODEL_LOAD_FAILED,
            f"Model {context.entry.name}: the installed onnxruntime is for CPUs only: "
            f"pip uninstall onnxruntime, then {install_command('gpu')}",
        )
    # Finds CUDA libraries that are installed as Python packages, without importing torch.
    onnxruntime.preload_dlls()
    # The default, an exhaustive search, tries all algorithms again for each new batch size.
    return [(CUDA, {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}), CPU]


def feed_dtype(session: Any, name: str) -> str:
    """Numpy's name for the type of a session's floating-point input."""
    types = {item.name: item.type for item in session.get_inputs()}
    return "float16" if types[name] == "tensor(float16)" else "float32"
