"""ConSE: zero-shot classification with an ImageNet classifier and a sentence encoder.

Source: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings" (2014). An
image's vector is the mean of the embeddings of its T most probable ImageNet labels, weighted by their
probabilities. This module uses sentence embeddings instead of the paper's word vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.onnx.imagenet import Classifier, labels, pixels
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.shared.artifacts import fingerprint, made_once
from modelmill_backends.shared.encoders import EncoderRunner
from modelmill_backends.shared.losses import Read
from modelmill_backends.shared.numerics import normalise
from modelmill_backends.shared.parts import load_part
from modelmill_backends.shared.text_vectors import TextVectors
from modelmill_backends.shared.zero_shot import Scoring, ZeroShotRunner
from modelmill_backends.source import locate
from modelmill_tasks.text_embedding import Config as TextConfig
from modelmill_tasks.text_embedding import Input as TextInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

TEMPLATE = "a photo of a {}"
LABEL_FILE = "labels.npy"


class ConseOptions(RunnerOptions):
    """Options of a catalogue entry."""

    text_encoder: str = Field(description="Catalogue entry that answers text-embedding.")
    top: int = Field(
        10, ge=1, le=1000, description="T: number of ImageNet labels that make an image's vector."
    )
    scale: float = Field(20.0, gt=0, description="Sharpens the cosines before the softmax.")


class TextEncoder:
    """Any runner for text-embedding, as a function from sentences to vectors."""

    def __init__(self, runner: Runner[Any, Any]) -> None:
        self.runner = runner

    def __call__(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        return self.encode([self.prepare(text) for text in sentences])

    def prepare(self, text: str) -> Prepared[Any]:
        """The input of ``encode`` for one text. Runs in threads."""
        config = TextConfig(normalize=True, prompt_name=None)
        # Without pydantic's checks: these values are known to be valid.
        return self.runner.preprocess(TextInput.model_construct(text=text, config=config))

    def encode(self, batch: Sequence[Prepared[Any]]) -> NDArray[np.float32]:
        """Vectors ``[n, dim]`` of length 1, in one pass."""
        import numpy as np

        raw = self.runner.forward(batch)
        outputs: list[Any] = [self.runner.postprocess(*pair) for pair in zip(batch, raw, strict=True)]
        return np.asarray([output.embedding for output in outputs], dtype=np.float32)

    def close(self) -> None:
        if callable(close := getattr(self.runner.weights, "close", None)):
            close()


@dataclass(frozen=True, slots=True)
class Conse:
    """The two loaded models."""

    classifier: Classifier
    encoder: TextEncoder
    label_vectors: NDArray[np.float32]
    """``[1000, dim]``, each of length 1."""
    options: ConseOptions

    @property
    def normalizes(self) -> bool:
        """True: ConSE compares by cosine. Vectors of texts always have length 1."""
        return True

    def prepare_image(self, image: Image) -> NDArray[np.float32]:
        return pixels(image)

    def encode_images(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        """The weighted mean of the embeddings of the most probable labels, ``[n, dim]``."""
        import numpy as np

        probabilities = self.classifier.probabilities(prepared)
        top = np.argsort(-probabilities, axis=1)[:, : self.options.top]
        weights = np.take_along_axis(probabilities, top, axis=1)
        # The paper divides by the sum of the weights, which does not change a cosine.
        mean = (weights[..., None] * self.label_vectors[top]).sum(axis=1)
        result: NDArray[np.float32] = mean.astype(np.float32)
        return result

    def prepare_text(self, text: str) -> Prepared[Any]:
        return self.encoder.prepare(text)

    def encode_texts(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        return self.encoder.encode(prepared)

    def close(self) -> None:
        self.encoder.close()


class ConseWeights:
    """The ``load`` that all runners on ConSE share."""

    @classmethod
    def load(cls, context: LoadContext) -> Conse:
        options = read_options(context.entry, ConseOptions)
        classifier = Classifier.load(context)
        runner = load_part(context, "text_encoder", options.text_encoder, "text-embedding")
        encoder = TextEncoder(runner)
        # The built-in runtimes say where they found the weights: asking a hub twice may mean waiting twice.
        source = getattr(runner.weights, "folder", None) or locate(runner.entry)
        return Conse(classifier, encoder, _label_vectors(context, encoder, source), options)


class ConseRunner(ConseWeights, ZeroShotRunner[Conse]):
    """Works for everyday subjects that are similar to one of ImageNet's labels."""

    backend = "onnx"
    name = "conse"
    template = TEMPLATE

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.weights.options.scale)

    def pixels(self, image: Image) -> Any:
        return self.weights.prepare_image(image)

    def encode_images(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        return self.weights.encode_images(pixels)

    def encode_texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        return self.weights.encoder(sentences)

    def read(self, sentence: str) -> Read | None:
        runner = self.weights.encoder.runner
        return runner.encoder.tokens(sentence) if isinstance(runner, EncoderRunner) else None


def _label_vectors(context: LoadContext, encoder: TextEncoder, source: Path) -> NDArray[np.float32]:
    """Embeddings of ImageNet's labels, computed once for each text encoder."""
    import numpy as np

    sentences = [TEMPLATE.replace("{}", label) for label in labels()]

    def make(folder: Path) -> None:
        found = TextVectors(encoder, capacity=len(sentences)).of(sentences)
        vectors = np.stack([found[sentence] for sentence in sentences])
        np.save(folder / LABEL_FILE, vectors, allow_pickle=False)

    folder = context.cache_dir / f"labels-{fingerprint(source, sentences)}"
    made_once(context.entry, folder, make)
    vectors: NDArray[np.float32] = np.load(folder / LABEL_FILE, allow_pickle=False)
    return np.asarray(normalise(vectors), dtype=np.float32)
