"""Sentence encoders as sentence-transformers saves them: its JSON files, and the pooling.

All runtimes use this module: ``pool`` takes numpy arrays and torch tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmill.catalogue import ModelEntry
from modelmill.errors import invalid_field
from modelmill_backends.containment import inside
from modelmill_backends.failures import load_failed, module_missing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_WINDOW = 512
NO_LIMIT = 1_000_000
"""Configurations write a limit that is absent as a huge number, such as 10 ** 30."""
POOLINGS = ("mean", "cls", "lasttoken", "mean_sqrt_len_tokens")
_POOLING_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_ACTIVATIONS = ("Identity", "Tanh")


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A layer after the pooling: the Dense module of sentence-transformers.

    Attributes:
        weight: ``[out, in]``.
        bias: ``[out]``, or None.
        squashes: Whether the hyperbolic tangent follows.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    squashes: bool

    def applied(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors ``[n, in]`` → ``[n, out]``."""
        import numpy as np

        found = vectors @ self.weight.T
        if self.bias is not None:
            found = found + self.bias
        return np.tanh(found) if self.squashes else found


@dataclass(frozen=True, slots=True)
class SentenceConfig:
    """How a model's token vectors become one vector."""

    pooling: str = "mean"
    dense: tuple[Dense, ...] = ()
    normalizes: bool = False
    window: int = DEFAULT_WINDOW
    """Tokens that the model sees, special ones included."""
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    def with_prompt(self, text: str, prompt_name: str | None) -> str:
        """The text with the named or default prompt before it.

        Raises:
            ModelmillError: ``invalid_input``: the model has no such prompt; the message lists those it has.
        """
        name = prompt_name or self.default_prompt
        if name is not None:
            if name not in self.prompts:
                known = ", ".join(sorted(self.prompts)) or "none"
                raise invalid_field("config.prompt_name", f"the model has no such prompt; it knows: {known}")
            text = self.prompts[name] + text
        return text.lower() if self.lower_case else text

    def finished(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pooled vectors ``[n, dim]`` after the layers that follow the pooling."""
        for layer in self.dense:
            pooled = layer.applied(pooled)
        return pooled

    def should_normalise(self, asked: bool | None) -> bool:
        return self.normalizes if asked is None else asked


def read_sentence_config(entry: ModelEntry, folder: Path) -> SentenceConfig:
    """Reads ``modules.json`` and the files that it names.

    An encoder without these files gets mean pooling, as in sentence-transformers.

    Raises:
        ModelmillError: ``model_load_failed``: the folder asks for an unsupported module or pooling.
    """
    modules = _read(folder / "modules.json") or []
    kinds = {str(module.get("type", "")).rpartition(".")[2]: module for module in modules}
    for kind in kinds:
        if kind not in _MODULES:
            raise load_failed(entry, f"modules.json asks for {kind}; supported are {', '.join(_MODULES)}")
    pooling_folder = inside(entry, folder, kinds.get("Pooling", {}).get("path") or "1_Pooling")
    sentence = _read(folder / "sentence_bert_config.json") or {}
    extra = _read(folder / "config_sentence_transformers.json") or {}
    return SentenceConfig(
        pooling=_pooling(entry, _read(pooling_folder / "config.json") or {}),
        dense=tuple(
            _dense(entry, inside(entry, folder, module.get("path")))
            for module in modules
            if str(module.get("type", "")).endswith(".Dense")
        ),
        normalizes="Normalize" in kinds,
        window=int(sentence.get("max_seq_length") or _window(folder)),
        lower_case=bool(sentence.get("do_lower_case", False)),
        prompts={name: text for name, text in (extra.get("prompts") or {}).items() if text},
        default_prompt=extra.get("default_prompt_name"),
    )


def least_limit(limits: Iterable[float | None], default: int) -> int:
    """The smallest of a model's limits in tokens; ``default`` if there is none."""
    return min([int(limit) for limit in limits if limit and 0 < limit < NO_LIMIT] or [default])


def pool(hidden: Any, mask: Any, pooling: str) -> Any:
    """One vector per text: ``[n, tokens, dim]`` and a 0/1 mask ``[n, tokens]`` → ``[n, dim]``.

    Expects padding on the right. Source: the Pooling module of sentence-transformers.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "lasttoken":
        # The last token is where the running count reaches the total.
        mask = mask * (mask.cumsum(1) == mask.sum(1)[:, None])
    summed = (hidden * mask[..., None]).sum(1)
    count = mask.sum(1)[:, None].clip(1)
    return summed / (count**0.5 if pooling == "mean_sqrt_len_tokens" else count)


def pad(rows: Sequence[Sequence[int]], value: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and their 0/1 mask, ``[n, longest]``, padded on the right."""
    import numpy as np

    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), value, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


def _pooling(entry: ModelEntry, config: Mapping[str, Any]) -> str:
    modes = [name for flag, name in _POOLING_FLAGS.items() if config.get(flag)]
    mode = config.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else modes or ["mean"]
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise load_failed(
            entry, f"it pools by {' + '.join(modes)}; supported is one of {', '.join(POOLINGS)}"
        )
    if config.get("include_prompt") is False:
        raise load_failed(
            entry, "it pools without its prompt (include_prompt = false), which is not supported"
        )
    return str(modes[0])


def _dense(entry: ModelEntry, folder: Path) -> Dense:
    try:
        from safetensors.numpy import load_file
    except ModuleNotFoundError as error:
        raise module_missing(entry, error.name, ("transformers",)) from None
    config, file = _read(folder / "config.json") or {}, folder / "model.safetensors"
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise load_failed(entry, f"its Dense module asks for {activation}; supported are {known}")
    if not file.is_file():
        raise load_failed(entry, "its Dense module has no safetensors weights, and pickles are never read")
    weights = load_file(file)
    return Dense(weights["linear.weight"], weights.get("linear.bias"), activation == "Tanh")


def _window(folder: Path) -> int:
    tokenizer = _read(folder / "tokenizer_config.json") or {}
    config = _read(folder / "config.json") or {}
    return least_limit(
        [tokenizer.get("model_max_length"), config.get("max_position_embeddings")], DEFAULT_WINDOW
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
