"""Inputs for the library's audio models, and the loading of their feature extractors."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelmill.errors import ErrorCode, MediaError
from modelmill_backends.contract import LoadContext
from modelmill_backends.failures import first_line, load_failed
from modelmill_backends.options import read_options
from modelmill_backends.shared.audio import open_audio, require_codecs
from modelmill_backends.transformers.weights import Loaded, TransformersOptions, load_pretrained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelmill_backends.shared.audio import Samples

MIN_S = 0.1
"""A recording of fewer seconds has too few frames for an encoder."""
AST_FRAME_S = 0.01
"""Seconds between two frames of an audio spectrogram transformer."""
MAX_ROWS = 16
"""The most recordings, or pieces of recordings, in one forward pass."""


@dataclass(slots=True)
class Sounds:
    """An audio model with its feature extractor."""

    loaded: Loaded
    extractor: Any

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def rate(self) -> int:
        """Samples per second that the model takes."""
        return int(self.extractor.sampling_rate)

    @property
    def window_s(self) -> float | None:
        """Seconds of a recording that the extractor keeps; None if it keeps all."""
        if type(self.extractor).__name__ == "ASTFeatureExtractor":
            return float(self.extractor.max_length * AST_FRAME_S)
        length = getattr(self.extractor, "chunk_length", None)
        return None if length is None else float(length)

    @property
    def may_pad(self) -> bool:
        """Whether recordings of different lengths can share a pass without changing each other's results.

        In the wav2vec2 family only models with layer norm were trained with an attention mask. A group norm
        takes its mean over the whole time axis, including padding. Other models are treated as unable.
        """
        config = self.model.config
        norm = getattr(config, "feat_extract_norm", None)
        masks = getattr(self.extractor, "return_attention_mask", False)
        return norm == "layer" and masks and not getattr(config, "add_adapter", False)

    def open(self, source: str) -> Samples:
        """``[samples]`` at the model's rate.

        Raises:
            MediaError: the audio cannot be read, or it is shorter than ``MIN_S``.
        """
        samples = open_audio(source, self.rate)
        if samples.size < MIN_S * self.rate:
            raise MediaError(ErrorCode.INVALID_MEDIA, f"The audio is shorter than {MIN_S} s.")
        return samples

    def features(self, samples: Samples, **settings: Any) -> dict[str, NDArray[Any]]:
        """The model's inputs for one recording, without a batch axis."""
        found = self.extractor(samples, sampling_rate=self.rate, return_tensors="np", **settings)
        return {name: values[0] for name, values in found.items()}

    def run(self, rows: Sequence[Mapping[str, NDArray[Any]]]) -> list[NDArray[np.float32]]:
        """The logits of each row of inputs, in order: ``[labels]``, or ``[frames, labels]``.

        Rows share a pass if they have the same shape or may be padded. The result includes padding frames.
        """
        import torch

        kinds: dict[Hashable, list[int]] = {}
        for index, row in enumerate(rows):
            kinds.setdefault(() if self.may_pad else _shape(row), []).append(index)
        found: dict[int, NDArray[np.float32]] = {}
        with torch.inference_mode():
            for kind in kinds.values():
                for first in range(0, len(kind), MAX_ROWS):
                    members = kind[first : first + MAX_ROWS]
                    inputs = self._on_device([rows[index] for index in members])
                    logits = self.model(**inputs).logits.float().cpu().numpy()
                    found.update(zip(members, logits, strict=True))
        return [found[index] for index in range(len(rows))]

    def _on_device(self, rows: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
        inputs = {name: self._stacked([row[name] for row in rows]) for name in rows[0]}
        if not self.may_pad:
            # With equal lengths there is nothing to mask, and some models do worse with a mask of ones.
            inputs.pop("attention_mask", None)
        return self.loaded.in_model_dtype(inputs)

    def _stacked(self, values: Sequence[NDArray[Any]]) -> Any:
        import numpy as np

        longest = max(value.shape[0] for value in values)
        # Zeros are silence, and they are masked.
        padded = [
            np.pad(value, [(0, longest - value.shape[0]), *[(0, 0)] * (value.ndim - 1)]) for value in values
        ]
        return self.loaded.stacked_on_device(padded)

    def close(self) -> None:
        self.loaded.close()


def load_sounds(context: LoadContext, auto_class: str, *, tokenizer: bool = False) -> Sounds:
    """Loads the entry's model and its feature extractor.

    Raises:
        ModelmillError: ``model_load_failed``: as ``load_pretrained``, or there is no feature extractor.
    """
    require_codecs(context.entry)
    loaded = load_pretrained(context, auto_class, tokenizer=tokenizer)
    import transformers

    trusted = read_options(context.entry, TransformersOptions).trust_remote_code
    extractors: Any = transformers.AutoFeatureExtractor
    try:
        extractor = extractors.from_pretrained(
            loaded.folder, local_files_only=True, trust_remote_code=trusted
        )
    except (ImportError, OSError, ValueError, KeyError) as error:
        loaded.close()
        said = first_line(error, loaded.folder)
        raise load_failed(context.entry, f"its feature extractor cannot be loaded: {said}") from error
    return Sounds(loaded, extractor)


def _shape(row: Mapping[str, NDArray[Any]]) -> Hashable:
    return tuple(value.shape for value in row.values())
