"""Models of ``AutoModel`` that turn images into vectors.

CLIP, SigLIP and similar models also encode texts; vision models such as ViT and DINOv2 do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import LoadContext
from modelmill_backends.failures import first_line, load_failed
from modelmill_backends.options import read_options
from modelmill_backends.shared.literal import read_literally
from modelmill_backends.shared.losses import Read, warn_of
from modelmill_backends.shared.sentences import least_limit
from modelmill_backends.transformers.images import ImageInputs
from modelmill_backends.transformers.texts import read_text
from modelmill_backends.transformers.weights import Loaded, TransformersOptions, load_pretrained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

DEFAULT_WINDOW = 77
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")


class VisionEncoder:
    """A loaded model and its inputs.

    The vector of an image is ``get_image_features`` of a dual encoder. For other models it is the
    ``pooler_output``, or, without a pooler, the first token (CLS); for a convolutional network the mean.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._images = ImageInputs(loaded)
        self._pools = _has_trained_pooler(loaded)

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def normalizes(self) -> bool:
        """False: the pooler of a vision model does not normalise."""
        return False

    def prepare_image(self, image: Image) -> Any:
        return self._images.prepare(image)

    def encode_images(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        model = self.model
        return self._images.run(prepared, lambda **inputs: self._pooled(model(**inputs)))

    def _pooled(self, output: Any) -> Any:
        pooled = getattr(output, "pooler_output", None) if self._pools else None
        if pooled is not None:
            return pooled.flatten(1)
        hidden = output.last_hidden_state
        return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, 0]

    def close(self) -> None:
        self.loaded.close()


class DualEncoder(VisionEncoder):
    """A model with ``get_image_features`` and ``get_text_features``."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self.is_siglip = "siglip" in loaded.model.config.model_type
        text_config = getattr(loaded.model.config, "text_config", None)
        limits = [getattr(text_config, "max_position_embeddings", None), loaded.tokenizer.model_max_length]
        self.window = least_limit(limits, DEFAULT_WINDOW)

    @property
    def normalizes(self) -> bool:
        """True: ``image_embeds`` and ``text_embeds`` of these models' own ``forward`` have length 1."""
        return True

    def encode_images(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        model = self.model
        return self._images.run(prepared, lambda **inputs: _tensor(model.get_image_features(**inputs)))

    def prepare_text(self, text: str) -> Mapping[str, list[int]]:
        """The tokenizer's arrays without padding: token ids and the model's other inputs."""
        with self.loaded.tokenizing:
            encoded = self.loaded.tokenizer(text, truncation=True, max_length=self.window)
        warn_of(read_text(self.loaded, encoded, text))
        return dict(encoded)

    def read(self, text: str) -> Read:
        """The tokens of one text, cut off at the window. Runs in threads."""
        with self.loaded.tokenizing:
            encoded = self.loaded.tokenizer(text, truncation=True, max_length=self.window)
        return read_text(self.loaded, encoded, text)

    def encode_texts(self, prepared: Sequence[Mapping[str, list[int]]]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            features = self.model.get_text_features(**self.loaded.to_device(**self._padded(prepared)))
            vectors: NDArray[np.float32] = _tensor(features).float().cpu().numpy()
        return vectors

    def _padded(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, NDArray[np.int64]]:
        import numpy as np

        tokenizer = self.loaded.tokenizer
        # SigLIP was trained on padded texts, and the padding changes its result.
        width = self.window if self.is_siglip else max(len(row["input_ids"]) for row in rows)
        arrays = {}
        for name in rows[0]:
            fill = (tokenizer.pad_token_id or 0) if name == "input_ids" else 0
            array = np.full((len(rows), width), fill, dtype=np.int64)
            for target, row in zip(array, rows, strict=True):
                length = len(row[name])
                target[slice(width - length, None) if tokenizer.padding_side == "left" else slice(length)] = (
                    row[name]
                )
            arrays[name] = array
        return arrays


class EncoderWeights:
    """The ``load`` that all runners on these models share, so that a model is read once for all its tasks."""

    @classmethod
    def load(cls, context: LoadContext) -> Any:
        """A ``DualEncoder`` if the model encodes texts, otherwise a ``VisionEncoder``.

        Raises:
            ModelmillError: ``model_load_failed``: as ``load_pretrained``.
        """
        loaded = load_pretrained(context, "AutoModel", images=True)
        if hasattr(loaded.model, "get_image_features") and hasattr(loaded.model, "get_text_features"):
            loaded.tokenizer = _tokenizer(context, loaded)
            return DualEncoder(loaded)
        return VisionEncoder(loaded)


def need_dual_encoder(encoder: VisionEncoder, context: LoadContext) -> DualEncoder:
    """The encoder, if it can compare images with texts.

    Raises:
        ModelmillError: ``model_load_failed``: it has no text encoder.
    """
    if isinstance(encoder, DualEncoder):
        return encoder
    raise load_failed(context.entry, f"a {type(encoder.model).__name__} does not compare images with texts")


def _tokenizer(context: LoadContext, loaded: Loaded) -> Any:
    import transformers

    options = read_options(context.entry, TransformersOptions)
    if not any(file for pattern in VOCABULARIES for file in loaded.folder.glob(pattern)):
        # Without these files the library would make a tokenizer without words.
        loaded.close()
        raise load_failed(context.entry, "its folder holds no tokenizer")
    tokenizers: Any = transformers.AutoTokenizer
    try:
        return read_literally(
            tokenizers.from_pretrained(
                loaded.folder, trust_remote_code=options.trust_remote_code, local_files_only=True
            )
        )
    except (ImportError, OSError, ValueError, KeyError) as error:
        loaded.close()
        raise load_failed(
            context.entry, f"transformers cannot load its tokenizer: {first_line(error, loaded.folder)}"
        ) from error


def _has_trained_pooler(loaded: Loaded) -> bool:
    """Whether the pooler has trained weights.

    A classifier's weights may lack the pooler of the bare model. The library then fills it at random.
    """
    from safetensors import safe_open

    if not any("pooler." in name for name, _ in loaded.model.named_parameters()):
        return True
    names: set[str] = set()
    for file in loaded.folder.glob("*.safetensors"):
        opening: Any = safe_open
        with opening(file, framework="np") as weights:
            names.update(weights.keys())
    return any("pooler." in name for name in names)


def _tensor(features: Any) -> Any:
    # Since version 5 of the library, the features are inside an output object.
    return getattr(features, "pooler_output", features)
