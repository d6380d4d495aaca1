"""Cuts an image into segments by a model's masks, with the memory of a few images.

The results equal those of the library's processors (``post_process_*_segmentation``). But these scale all
masks of a model to the image at once: 100 masks of a photo of 12 megapixels are 5 GB. Here one mask is
scaled at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.transformers.regions import (
    RawOutputs,
    RegionInputs,
    labels_of,
    model_type,
    require_numbers,
)
from modelmill_backends.transformers.weights import Loaded, load_pretrained
from modelmill_tasks.contract import TaskInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MASK_THRESHOLD = 0.5
"""Lowest probability of a pixel that belongs to a mask, as in the library."""
OVERLAP = 0.5
"""Share of a segment's own mask that other segments must leave visible; the pipeline's value."""
MASK2FORMER_SIZE = (384, 384)
"""The library scales Mask2Former's masks to this size first."""

Item = TypeVar("Item", bound=TaskInput)


class Found(NamedTuple):
    """A segment: the index of its label, its score and its pixels ``[height, width]`` in the image."""

    label: int
    score: float
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model with one mask per query: the names of its outputs, and how to read them."""

    classes: str
    """Output ``[queries, labels + 1]``; the last label means "no object"."""
    masks: str
    """Output ``[queries, height, width]``."""
    overlapping: bool = True
    """Whether its instances may overlap and are ranked by the scores of label and mask."""
    first_size: tuple[int, int] | None = None

    def mask(self, raw: RawOutputs, query: int) -> Any:
        """The mask of a query before its sigmoid, as a tensor ``[1, 1, height, width]``."""
        import torch

        logits = torch.from_numpy(raw[self.masks][query])[None, None]
        return logits if self.first_size is None else _scaled(logits, self.first_size)


FAMILIES = {
    "detr": Family("logits", "pred_masks", overlapping=False),
    "maskformer": Family("class_queries_logits", "masks_queries_logits"),
    "mask2former": Family("class_queries_logits", "masks_queries_logits", first_size=MASK2FORMER_SIZE),
}
"""By ``model_type``. Any other model is one of ``AutoModelForSemanticSegmentation``."""


class SegmentationRunner(Runner[Item, Loaded]):
    """Base of the runners that segment. One set of weights answers all their tasks."""

    backend = "transformers"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        self.family = FAMILIES.get(weights.model.config.model_type)
        """None for a model that can only do semantic segmentation."""
        names = ("logits",) if self.family is None else (self.family.classes, self.family.masks)
        self._images = RegionInputs(weights, names)
        self.labels = labels_of(weights.model)

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        universal = model_type(context.entry) in FAMILIES
        name = "AutoModelForUniversalSegmentation" if universal else "AutoModelForSemanticSegmentation"
        return load_pretrained(context, name, images=True)

    def group_key(self, item: Item) -> Hashable:
        # Only postprocess uses the config.
        return ()

    def prepared(self, item: Item, image: str) -> Prepared[Item]:
        return Prepared(item, self._images.prepare(image))

    def forward(self, batch: Sequence[Prepared[Item]]) -> Sequence[Any]:
        return self._images.run([prepared.data for prepared in batch])


def instances(raw: RawOutputs, family: Family, size: tuple[int, int], threshold: float) -> Iterator[Found]:
    """The objects with a score of at least ``threshold``, best first. Their masks may overlap.

    Source: the processors' ``post_process_instance_segmentation``, with ``return_binary_maps`` if it has that
    parameter. Its documentation says that a single map is wrong if instances overlap.
    """
    import torch
    from torch.nn.functional import interpolate

    require_numbers(raw)
    if not family.overlapping:
        yield from panoptic(raw, family, size, threshold)
        return
    scores = torch.from_numpy(raw[family.classes]).softmax(-1)[:, :-1]
    best, places = scores.flatten().topk(len(scores))
    ranked: list[tuple[float, int, int]] = []
    for score, place in zip(best.tolist(), places.tolist(), strict=True):
        query, label = divmod(place, scores.shape[1])
        # A mask's own score is at most 1, so a score below the threshold stays below it.
        if score >= threshold:
            logits = family.mask(raw, query)
            inside = logits > 0
            mean = float((logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6))
            ranked.append((score * mean, label, query))
    for score, label, query in sorted(ranked, key=lambda one: -one[0]):
        if score >= threshold:
            inside = (family.mask(raw, query) > 0).to(torch.uint8)
            mask = interpolate(inside, size=size, mode="nearest")[0, 0].bool().numpy()
            if mask.any():
                yield Found(label, score, mask)


def panoptic(raw: RawOutputs, family: Family, size: tuple[int, int], threshold: float) -> Iterator[Found]:
    """Segments with a score above ``threshold``, best first. Each pixel is in at most one of them.

    Source: the processors' ``compute_segments`` without labels to fuse, as the pipeline calls it.
    """
    import torch

    require_numbers(raw)
    best, label = torch.from_numpy(raw[family.classes]).softmax(-1).max(-1)
    nothing = raw[family.classes].shape[1] - 1
    kept = torch.nonzero((label != nothing) & (best > threshold)).flatten().tolist()
    top = torch.full(size, -1.0)
    owner = torch.full(size, -1, dtype=torch.int16)
    areas: dict[int, int] = {}
    for query in kept:
        weighted = _scaled(family.mask(raw, query).sigmoid(), size)[0, 0] * best[query]
        areas[query] = int((weighted >= MASK_THRESHOLD).sum())
        owner[weighted > top] = query
        torch.maximum(top, weighted, out=top)
    for query in sorted(kept, key=lambda query: -float(best[query])):
        mask = owner == query
        area = int(mask.sum())
        if area and areas[query] and area / areas[query] > OVERLAP:
            yield Found(int(label[query]), float(best[query]), mask.numpy())


def semantic(raw: RawOutputs, family: Family | None, size: tuple[int, int]) -> NDArray[np.int16]:
    """The index of each pixel's label, ``[height, width]``.

    Source: the processors' ``post_process_semantic_segmentation``.
    """
    import torch

    require_numbers(raw)
    if family is None:
        return _winners(torch.from_numpy(raw["logits"]), size)
    shares = torch.from_numpy(raw[family.classes]).softmax(-1)[:, :-1]
    shape = family.mask(raw, 0).shape[-2:]
    scores = torch.zeros(shares.shape[1], *shape)
    for query, share in enumerate(shares):
        scores += share[:, None, None] * family.mask(raw, query)[0].sigmoid()
    return _winners(scores, size)


def _winners(scores: Any, size: tuple[int, int]) -> NDArray[np.int16]:
    """The label with the largest of ``scores[labels, h, w]`` at each pixel, after scaling to ``size``."""
    import torch

    top = torch.full(size, -torch.inf)
    winner = torch.zeros(size, dtype=torch.int16)
    for index in _candidates(scores):
        scaled = _scaled(scores[None, index, None], size)[0, 0]
        winner[scaled > top] = index
        torch.maximum(top, scaled, out=top)
    found: NDArray[np.int16] = winner.numpy()
    return found


def _candidates(scores: Any) -> list[int]:
    """The labels that can have the largest score at some pixel: usually a dozen of 150.

    A scaled value is between the smallest and the largest of four neighbours. If, in each group of four, a
    label's largest value is below the smallest value of another label, it cannot have the largest score.
    """
    from torch.nn.functional import max_pool2d

    kernel = tuple(min(2, edge) for edge in scores.shape[1:])
    most = max_pool2d(scores[None], kernel, stride=1)[0]
    least = -max_pool2d(-scores[None], kernel, stride=1)[0]
    # Rounding can change a scaled value by this much.
    slack = 1e-5 * float(scores.abs().max())
    reach = (most >= least.amax(0) - slack).flatten(1).any(1)
    found: list[int] = reach.nonzero().flatten().tolist()
    return found


def _scaled(maps: Any, size: tuple[int, int]) -> Any:
    from torch.nn.functional import interpolate

    return interpolate(maps, size=size, mode="bilinear", align_corners=False)
