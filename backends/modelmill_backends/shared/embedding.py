"""Embeddings of images, of texts in the same space, and of both: the part that all runtimes share.

A runtime provides weights that encode. The runners here prepare items in threads, encode all images of a
batch in one pass and all its texts in another, and scale the vectors as the caller asks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from modelmill_backends.contract import Prepared, Runner
from modelmill_backends.shared.numerics import normalise
from modelmill_tasks.image_embedding import Input as ImageInput
from modelmill_tasks.image_embedding import Output as ImageOutput
from modelmill_tasks.image_text_embedding import Input as PairInput
from modelmill_tasks.image_text_embedding import Output as PairOutput
from modelmill_tasks.multimodal_embedding import Input as ContentInput
from modelmill_tasks.multimodal_embedding import Output as ContentOutput
from modelmill_tasks.shared.images import open_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


class ImageEncoder(Protocol):
    """Weights that turn images into vectors."""

    @property
    def normalizes(self) -> bool:
        """Whether vectors get length 1 if the caller sets nothing."""

    def prepare_image(self, image: Image) -> Any:
        """The input of ``encode_images`` for one RGB image. Runs in threads."""

    def encode_images(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        """Vectors ``[n, dim]`` of any length, in one pass."""


class PairEncoder(ImageEncoder, Protocol):
    """Weights that put images and texts into one space."""

    def prepare_text(self, text: str) -> Any:
        """The input of ``encode_texts`` for one text, cut off at the window. Runs in threads."""

    def encode_texts(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        """Vectors ``[n, dim]`` of any length, in one pass."""


OfImages = TypeVar("OfImages", bound=ImageEncoder)
OfPairs = TypeVar("OfPairs", bound=PairEncoder)


class ImageEmbedding(Runner[ImageInput, OfImages]):
    """Base of the runners for image-embedding."""

    task = "image-embedding"

    def group_key(self, item: ImageInput) -> Hashable:
        # Only postprocess uses normalize, here and below.
        return ()

    def preprocess(self, item: ImageInput) -> Prepared[ImageInput]:
        return Prepared(item, self.weights.prepare_image(open_image(item.image)))

    def forward(self, batch: Sequence[Prepared[ImageInput]]) -> Sequence[Any]:
        return list(self.weights.encode_images([prepared.data for prepared in batch]))

    def postprocess(self, prepared: Prepared[ImageInput], raw: Any) -> ImageOutput:
        return ImageOutput(embedding=_scaled(raw, prepared.item.config.normalize, self.weights))


class ImageTextEmbedding(Runner[PairInput, OfPairs]):
    """Base of the runners for image-text-embedding."""

    task = "image-text-embedding"

    def group_key(self, item: PairInput) -> Hashable:
        return ()

    def preprocess(self, item: PairInput) -> Prepared[PairInput]:
        image = self.weights.prepare_image(open_image(item.image))
        return Prepared(item, (image, self.weights.prepare_text(item.text)))

    def forward(self, batch: Sequence[Prepared[PairInput]]) -> Sequence[Any]:
        images, texts = zip(*(prepared.data for prepared in batch), strict=True)
        return list(zip(self.weights.encode_images(images), self.weights.encode_texts(texts), strict=True))

    def postprocess(self, prepared: Prepared[PairInput], raw: Any) -> PairOutput:
        import numpy as np

        image, text = raw
        asked = prepared.item.config.normalize
        return PairOutput(
            # Each has length 1, so both together have the square root of 2.
            embedding=normalise(np.concatenate([normalise(image), normalise(text)])).tolist(),
            image_embedding=_scaled(image, asked, self.weights),
            text_embedding=_scaled(text, asked, self.weights),
        )


class MultimodalEmbedding(Runner[ContentInput, OfPairs]):
    """Base of the runners for multimodal-embedding."""

    task = "multimodal-embedding"

    def group_key(self, item: ContentInput) -> Hashable:
        return ()

    def preprocess(self, item: ContentInput) -> Prepared[ContentInput]:
        content = item.input
        if content.image is not None:
            return Prepared(item, self.weights.prepare_image(open_image(content.image)))
        return Prepared(item, self.weights.prepare_text(content.text or ""))

    def forward(self, batch: Sequence[Prepared[ContentInput]]) -> Sequence[Any]:
        vectors: list[Any] = [None] * len(batch)
        is_image = [prepared.item.input.image is not None for prepared in batch]
        for kind, encode in ((True, self.weights.encode_images), (False, self.weights.encode_texts)):
            rows = [row for row, image in enumerate(is_image) if image is kind]
            found = encode([batch[row].data for row in rows]) if rows else ()
            for row, vector in zip(rows, found, strict=True):
                vectors[row] = vector
        return vectors

    def postprocess(self, prepared: Prepared[ContentInput], raw: Any) -> ContentOutput:
        return ContentOutput(embedding=_scaled(raw, prepared.item.config.normalize, self.weights))


def _scaled(vector: Any, asked: bool | None, encoder: ImageEncoder) -> list[float]:
    should = encoder.normalizes if asked is None else asked
    values: list[float] = (normalise(vector) if should else vector).tolist()
    return values
