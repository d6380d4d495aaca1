"""The process that exports weights to ONNX: the only module of this package that runs torch.

``python -m modelmill_backends.onnx.export_process MAKER SOURCE TARGET``: see ``onnx/export.py``.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmill_backends.onnx.export import FAILED

TOLERANCE = 1e-3
PROTOBUF_LIMIT_BYTES = 2_000_000_000
"""A single ONNX file cannot hold more; larger weights go into a second file."""


@dataclass(frozen=True, slots=True)
class Exportable:
    """A network and what the exporter must know about it.

    Attributes:
        network: A torch module in eval mode whose ``forward`` takes ``inputs`` in order.
        inputs: Example tensors by name.
        check: Tensors of other sizes, by name, for which the export must give the network's result.
        outputs: Names of the results of ``forward``.
        dynamic_axes: Numbers of the axes that vary, the same for all inputs.
    """

    network: Any
    inputs: Mapping[str, Any]
    check: Mapping[str, Any]
    outputs: Sequence[str]
    dynamic_axes: Sequence[int]


def export(exportable: Exportable, target: Path) -> None:
    """Writes ``target``. If one file cannot hold the weights, they go into a second file next to it."""
    import torch

    names = list(exportable.inputs)
    size = sum(value.numel() * value.element_size() for value in exportable.network.state_dict().values())
    dynamic = tuple(dict.fromkeys(exportable.dynamic_axes, torch.export.Dim.DYNAMIC) for _ in names)
    with torch.no_grad():
        torch.onnx.export(
            exportable.network,
            tuple(exportable.inputs.values()),
            target,
            input_names=names,
            output_names=list(exportable.outputs),
            dynamic_shapes=dynamic,
            # The older exporter is faster, but it lost the attention mask of BERT without an error.
            dynamo=True,
            external_data=size > PROTOBUF_LIMIT_BYTES,
            verbose=False,
        )


def difference(exportable: Exportable, target: Path) -> float:
    """The largest difference between the file and the network, on inputs of another size."""
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    got = session.run(None, {name: value.numpy() for name, value in exportable.check.items()})
    with torch.inference_mode():
        wanted = exportable.network(*exportable.check.values())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(got, wanted, strict=True))


def run(maker: str, source: str, target: str) -> dict[str, str] | None:
    """Exports and compares. Returns None, or the problem: a missing ``module`` or an ``error``."""
    module, _, function = maker.partition(":")
    try:
        exportable: Exportable = getattr(importlib.import_module(module), function)(Path(source))
        export(exportable, Path(target))
        worst = difference(exportable, Path(target))
    except ModuleNotFoundError as error:
        return {"module": str(error.name)}
    except Exception as error:
        traceback.print_exc()
        # The exporter wraps the cause in pages of advice.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return {"error": f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"}
    return None if worst < TOLERANCE else {"error": f"the result differs from PyTorch's by {worst:.3g}"}


if __name__ == "__main__":
    # The exporter makes millions of objects and little garbage, so Python need not look for garbage often.
    gc.set_threshold(100_000, 50, 100)
    warnings.simplefilter("ignore")
    problem = run(*sys.argv[1:])
    if problem is not None:
        print(json.dumps(problem))  # noqa: T201 - the parent reads it
        sys.exit(FAILED)
