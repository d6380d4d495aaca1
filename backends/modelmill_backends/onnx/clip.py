"""Zero-shot classification by CLIP and SigLIP in ONNX form, as Optimum exports them.

The file takes ``input_ids``, ``pixel_values`` (and ``attention_mask``) in one call and gives ``text_embeds``,
``image_embeds`` and ``logits_per_image``. Here images and texts are encoded separately: each call gets one
small input of the other kind, and its result is discarded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import LoadContext
from modelmill_backends.failures import load_failed
from modelmill_backends.onnx.encoder import ONNX_FILES, read_tokenizer
from modelmill_backends.onnx.session import feed_dtype, open_session
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.shared.image_settings import ImageSettings, read_image_settings
from modelmill_backends.shared.losses import Read, read_encoding, unknown_id_of, warn_of
from modelmill_backends.shared.numerics import normalise
from modelmill_backends.shared.sentences import pad
from modelmill_backends.shared.zero_shot import Scoring, ZeroShotRunner
from modelmill_backends.source import locate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

CLIP_WINDOW, SIGLIP_WINDOW = 77, 64
OUTPUTS = ("logits_per_image", "image_embeds", "text_embeds")
_PROBES = ("a", "a photo of a cat", "stock prices fell in 1929", "blue", "two dogs on a red sofa", "?!")


@dataclass(frozen=True, slots=True)
class Clip:
    """A loaded dual encoder."""

    session: Any
    tokenizer: Any
    images: ImageSettings
    image_shape: tuple[int, int, int]
    image_dtype: str
    pad_id: int
    fixed_length: int | None
    """SigLIP was trained on texts padded to this many tokens, and the padding changes its result."""
    scoring: Scoring
    unknown_id: int | None

    def run(
        self, pixels: NDArray[np.floating[Any]], sentences: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Runs both encoders: pixels ``[images, 3, height, width]`` and sentences."""
        return self._run(pixels, [encoding.ids for encoding in self.tokenizer.encode_batch(list(sentences))])

    def _run(
        self, pixels: NDArray[np.floating[Any]], rows: Sequence[list[int]]
    ) -> dict[str, NDArray[np.float32]]:
        import numpy as np

        if self.fixed_length is not None:
            rows = [row + [self.pad_id] * (self.fixed_length - len(row)) for row in rows]
        ids, mask = pad(rows, self.pad_id)
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "pixel_values": pixels.astype(self.image_dtype, copy=False),
        }
        names = {item.name for item in self.session.get_inputs()}
        results = self.session.run(
            list(OUTPUTS), {name: value for name, value in feeds.items() if name in names}
        )
        return {name: result.astype(np.float32) for name, result in zip(OUTPUTS, results, strict=True)}

    @property
    def normalizes(self) -> bool:
        """True: ``image_embeds`` and ``text_embeds`` of the file have length 1."""
        return True

    def prepare_image(self, image: Image) -> NDArray[np.floating[Any]]:
        # Converted here, in a thread, and not in `run`: the device would wait for it.
        return self.images.pixels(image).astype(self.image_dtype, copy=False)

    def encode_images(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        import numpy as np

        return self.run(np.stack(prepared), _PROBES[:1])["image_embeds"]

    def prepare_text(self, text: str) -> list[int]:
        read = self.read(text)
        warn_of(read)
        return list(read.ids)

    def read(self, text: str) -> Read:
        """The tokens of one text, cut off at the window."""
        return read_encoding(self.tokenizer.encode(text), self.unknown_id)

    def encode_texts(self, prepared: Sequence[list[int]]) -> NDArray[np.float32]:
        import numpy as np

        no_image = np.zeros((1, *self.image_shape), dtype=np.float32)
        return self._run(no_image, prepared)["text_embeds"]


class ClipWeights:
    """The ``load`` that all runners on such a file share."""

    @classmethod
    def load(cls, context: LoadContext) -> Clip:
        entry = context.entry
        read_options(entry, RunnerOptions)
        folder = locate(entry, ("*model.onnx", "*model.onnx_data"))
        file = next((folder / name for name in ONNX_FILES if (folder / name).is_file()), None)
        if file is None:
            raise load_failed(
                entry, f"its folder holds no {' or '.join(ONNX_FILES)}; use the backend transformers instead"
            )
        session = open_session(file, context)
        given = {output.name for output in session.get_outputs()}
        if not given.issuperset(OUTPUTS):
            raise load_failed(
                entry, f"its ONNX file has the outputs {sorted(given)}; needed are {', '.join(OUTPUTS)}"
            )
        clip = _assemble(context, folder, session)
        return _with_scoring(clip)


class ClipRunner(ClipWeights, ZeroShotRunner[Clip]):
    """A folder or hub repository that holds ``onnx/model.onnx`` or ``model.onnx``."""

    backend = "onnx"
    template = "This is a photo of {}."

    @property
    def scoring(self) -> Scoring:
        return self.weights.scoring

    def pixels(self, image: Image) -> Any:
        return self.weights.prepare_image(image)

    def encode_images(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        return self.weights.encode_images(pixels)

    def encode_texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        return self.weights.encode_texts([self.weights.prepare_text(text) for text in sentences])

    def read(self, sentence: str) -> Read:
        return self.weights.read(sentence)


def _assemble(context: LoadContext, folder: Path, session: Any) -> Clip:
    from PIL import Image

    entry = context.entry
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sigmoid = "siglip" in str(config.get("model_type", ""))
    # The file leaves out values that are the architecture's default.
    default = SIGLIP_WINDOW if sigmoid else CLIP_WINDOW
    window = int((config.get("text_config") or {}).get("max_position_embeddings") or default)
    tokenizer = read_tokenizer(entry, folder, window)
    images = read_image_settings(entry, folder)
    shape = images.pixels(Image.new("RGB", (32, 32))).shape
    return Clip(
        session=session,
        tokenizer=tokenizer,
        images=images,
        image_shape=(shape[0], shape[1], shape[2]),
        image_dtype=feed_dtype(session, "pixel_values"),
        pad_id=_pad_id(folder, tokenizer),
        fixed_length=window if sigmoid else None,
        scoring=Scoring(1.0, sigmoid=sigmoid),
        unknown_id=unknown_id_of(tokenizer),
    )


def _pad_id(folder: Path, tokenizer: Any) -> int:
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        token = json.loads(file.read_text(encoding="utf-8")).get("pad_token") if file.is_file() else None
        token = token.get("content") if isinstance(token, dict) else token
        found = tokenizer.token_to_id(token) if token else None
        if found is not None:
            return int(found)
    return 0


def _with_scoring(clip: Clip) -> Clip:
    """Finds the trained scale and bias, which are not in the folder's config.

    It solves ``logits = scale * cosine + bias`` by least squares over a few images and sentences.
    """
    import numpy as np

    # Images of different colour and structure, so that their cosines differ.
    random = np.random.default_rng(0)
    noise = random.standard_normal((3, *clip.image_shape)).astype(np.float32)
    noise[1] = noise[1].mean(axis=0) + 1
    noise[2] = np.linspace(-2, 2, clip.image_shape[2], dtype=np.float32)
    found = clip.run(noise, _PROBES)
    images, texts = (normalise(found[name].astype(np.float64)) for name in ("image_embeds", "text_embeds"))
    cosines = (images @ texts.T).ravel()
    logits = found["logits_per_image"].ravel().astype(np.float64)
    if clip.scoring.sigmoid:
        columns = np.stack([cosines, np.ones_like(cosines)], axis=1)
        (scale, bias), *_ = np.linalg.lstsq(columns, logits, rcond=None)
    else:
        scale, bias = float(cosines @ logits / (cosines @ cosines)), 0.0
    return replace(clip, scoring=Scoring(float(scale), float(bias), clip.scoring.sigmoid))
