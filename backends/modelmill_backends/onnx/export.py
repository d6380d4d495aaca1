"""Exports PyTorch weights to ONNX once, in a separate process, and keeps the file.

A worker that serves ONNX models never imports torch: the process
``python -m modelmill_backends.onnx.export_process`` writes the file.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import LoadContext
from modelmill_backends.failures import load_failed, module_missing
from modelmill_backends.onnx.session import open_session
from modelmill_backends.shared.artifacts import fingerprint, made_once

if TYPE_CHECKING:
    import subprocess

logger = logging.getLogger(__name__)

EXPORT_VERSION = 2
"""Part of each folder's name. Increase it when an exported graph changes."""

MODEL_FILE = "model.onnx"
FAILED = 3
"""Exit status of the export process when its last line of output is JSON with the reason."""


def open_exported(context: LoadContext, source: Path, maker: str) -> Any:
    """A session on the ONNX form of ``source``. If there is no export yet, it is made now.

    Args:
        context: The context of the model.
        source: File or folder of the PyTorch weights.
        maker: ``package.module:function`` that makes an ``Exportable`` from the source, with torch.

    Raises:
        ModelmillError: ``model_load_failed`` with the reason why the export failed.
    """
    key = fingerprint(source, EXPORT_VERSION, maker)
    # The folder is not the model's own, so that models with the same weights share the export.
    folder = context.settings.cache_dir / "onnx" / f"{source.stem}-{key}"
    made_once(context.entry, folder, lambda target: _export(context, source, maker, target))
    return open_session(folder / MODEL_FILE, context)


def _export(context: LoadContext, source: Path, maker: str, target: Path) -> None:
    import subprocess

    name = context.entry.name
    logger.info("model %s: exporting its weights to ONNX, once; this takes some seconds", name)
    started = time.monotonic()
    environment = os.environ | {
        "OMP_NUM_THREADS": str(context.device.threads),
        "CUDA_VISIBLE_DEVICES": "",  # the GPU's memory is for loaded models
        "HF_HUB_OFFLINE": "1",
    }
    # -P: a file onnx.py in the working directory must not hide the package onnx.
    command = [sys.executable, "-P", "-m", "modelmill_backends.onnx.export_process", maker, str(source)]
    command.append(str(target / MODEL_FILE))
    try:
        done = subprocess.run(  # noqa: S603 - the command is ours
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=context.settings.load_timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise load_failed(
            context.entry, f"exporting it took longer than {context.settings.load_timeout_s:.0f} s"
        ) from None
    if done.returncode != 0:
        logger.error("model %s: the export said:\n%s", name, done.stderr[-8000:])
        _raise_reason(context, source, done)
    logger.info("model %s: exported in %.1f s", name, time.monotonic() - started)


def _raise_reason(context: LoadContext, source: Path, done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode < 0:
        raise load_failed(
            context.entry,
            f"the export was killed by signal {-done.returncode}; 9 mostly means that memory ran out",
        )
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == FAILED else {}
    if "module" in said:
        raise module_missing(
            context.entry, f"{said['module']}, needed once to export the weights,", ("export",)
        )
    reason = said.get("error") or f"status {done.returncode}; the worker's log has its messages"
    reason = reason.replace(str(source), "its source")[:300]
    raise load_failed(context.entry, f"its weights cannot be exported to ONNX: {reason}")
