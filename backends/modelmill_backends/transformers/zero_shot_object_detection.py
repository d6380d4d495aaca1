"""Zero-shot object detection by OWL-ViT and OWLv2."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.shared.losses import losses_of
from modelmill_backends.shared.text_vectors import TextVectors
from modelmill_backends.shared.zero_shot import LISTS_KEPT
from modelmill_backends.transformers.regions import RegionInputs, as_outputs, detected, require_scipy
from modelmill_backends.transformers.texts import read_text
from modelmill_backends.transformers.weights import Loaded, load_pretrained
from modelmill_tasks.item_warnings import ItemWarning, warn
from modelmill_tasks.zero_shot_object_detection import Input, Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ZeroShotObjectDetectionRunner(Runner[Input, Loaded]):
    """All items of a batch share one pass over their images, even if their classes differ.

    As in the library's pipeline, each class is judged independently, and the class is the whole query.
    """

    backend = "transformers"
    task = "zero-shot-object-detection"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._images = RegionInputs(weights, ("logits", "pred_boxes"))
        self._window: int = weights.model.config.text_config.max_position_embeddings
        self._queries = TextVectors(self._encode)
        # The items of a batched job usually have the same classes.
        self._losses_once = lru_cache(LISTS_KEPT)(self._losses)

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        loaded = load_pretrained(context, "AutoModelForZeroShotObjectDetection", tokenizer=True, images=True)
        if loaded.model.config.model_type not in ("owlvit", "owlv2"):
            kind = type(loaded.model).__name__
            loaded.close()
            raise load_failed(context.entry, f"a {kind} is not supported; OWL-ViT and OWLv2 are")
        if loaded.model.config.model_type == "owlv2":
            require_scipy(context.entry, loaded)
        return loaded

    def group_key(self, item: Input) -> Hashable:
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        for loss in self._losses_once(tuple(item.classes)):
            warn(loss.code, loss.message)
        return Prepared(item, self._images.prepare(item.image))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        import numpy as np

        vectors = self._queries.of([name for prepared in batch for name in prepared.item.classes])
        tables = [np.stack([vectors[name] for name in prepared.item.classes]) for prepared in batch]

        def detect(rows: list[int], inputs: dict[str, Any]) -> Mapping[str, Any]:
            return self._detect(inputs["pixel_values"], [tables[row] for row in rows])

        return self._images.run([prepared.data for prepared in batch], detect)

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        config = prepared.item.config
        return Output(objects=detected(self._found(prepared, raw), prepared.data, config.top_k))

    def _found(self, prepared: Prepared[Input], raw: Any) -> Iterator[tuple[float, str, list[float]]]:
        process = self.weights.image_processor.post_process_object_detection
        threshold, size = prepared.item.config.threshold, prepared.data.size
        for index, name in enumerate(prepared.item.classes):
            alone = as_outputs({"logits": raw["logits"][:, index, None], "pred_boxes": raw["pred_boxes"]})
            (found,) = process(alone, threshold=threshold, target_sizes=[size])
            for score, corners in zip(found["scores"].tolist(), found["boxes"].tolist(), strict=True):
                yield score, name, corners

    def _detect(self, pixels: Any, tables: Sequence[NDArray[np.float32]]) -> Mapping[str, Any]:
        """The model's own ``forward``, but with classes that are already encoded."""
        import numpy as np

        model = self.weights.model
        # Shorter lists of classes are padded; the logits of the padding are not read.
        queries = np.zeros((len(tables), max(map(len, tables)), tables[0].shape[1]), dtype=np.float32)
        for table, query in zip(tables, queries, strict=True):
            query[: len(table)] = table
        features, _ = model.image_embedder(pixels)
        flat = features.flatten(1, 2)
        on_device = self.weights.stacked_on_device(list(queries)).to(model.dtype)
        logits, _ = model.class_predictor(flat, on_device)
        return {"logits": logits, "pred_boxes": model.box_predictor(flat, features)}

    def _losses(self, classes: tuple[str, ...]) -> list[ItemWarning]:
        reads = []
        for name in classes:
            with self.weights.tokenizing:
                encoded = self.weights.tokenizer(name, truncation=True, max_length=self._window)
            reads.append(read_text(self.weights, encoded, name))
        return losses_of(reads, "classes")

    def _encode(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        import torch

        with self.weights.tokenizing:
            tokens = self.weights.tokenizer(
                list(sentences), padding=True, truncation=True, max_length=self._window, return_tensors="np"
            )
        model = self.weights.model
        tower = model.owlv2 if model.config.model_type == "owlv2" else model.owlvit
        with torch.inference_mode():
            found = tower.get_text_features(**self.weights.to_device(**tokens))
            # Since version 5 of the library, the features are inside an output object.
            vectors: NDArray[np.float32] = getattr(found, "pooler_output", found).float().cpu().numpy()
        return vectors
