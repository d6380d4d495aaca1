"""Prepares sentence encoders for the export to ONNX: BERT-like models of ``transformers``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelmill_backends.onnx.export_process import Exportable


def to_export(folder: Path) -> Exportable:
    """For ``modelmill_backends.onnx.export``: token ids and masks ``[n, tokens]`` → ``last_hidden_state``."""
    import torch
    from torch import nn
    from transformers import AutoModel

    from modelmill_backends.onnx.export_process import Exportable

    model = AutoModel.from_pretrained(  # nosec B615
        folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    typed = "token_type_ids" in inspect.signature(model.forward).parameters
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
        ) -> torch.Tensor:
            extra = {} if types is None else {"token_type_ids": types}
            result: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
            return result

    def example(texts: int, tokens: int, padding: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, model.config.vocab_size, (texts, tokens))
        mask = torch.ones(texts, tokens, dtype=torch.long)
        mask[0, tokens - padding :] = 0
        return dict(zip(names, (ids, mask, torch.zeros_like(ids)), strict=False))

    return Exportable(
        network=Encoder(),
        inputs=example(texts=2, tokens=7, padding=3),
        check=example(texts=3, tokens=12, padding=5),
        outputs=["last_hidden_state"],
        dynamic_axes=[0, 1],
    )
