"""Segments that are cut one at a time equal those of the library's processors, which scale all at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from transformers import (
    DetrImageProcessorPil,
    Mask2FormerImageProcessorPil,
    MaskFormerImageProcessorPil,
    SegformerImageProcessorPil,
)

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.transformers.segments import FAMILIES, OVERLAP, instances, panoptic, semantic

PROCESSORS = {
    "detr": DetrImageProcessorPil,
    "maskformer": MaskFormerImageProcessorPil,
    "mask2former": Mask2FormerImageProcessorPil,
}
SIZES = [(61, 83), (9, 200), (30, 31)]


def answer_of(kind: str, seed: int) -> dict[str, Any]:
    """A possible answer of a model with 20 queries and 12 labels: blobs, a few of them with high scores."""
    generator = torch.Generator().manual_seed(seed)
    family = FAMILIES[kind]
    coarse = torch.randn(20, 1, 5, 6, generator=generator) * 6 - 6
    masks = interpolate(coarse, size=(23, 28), mode="bicubic")[:, 0]
    classes = torch.randn(20, 13, generator=generator)
    classes[:8].scatter_(1, torch.randint(0, 12, (8, 1), generator=generator), 9)
    return {family.classes: classes.numpy(), family.masks: masks.numpy()}


def by_library(kind: str, raw: dict[str, Any], what: str, size: tuple[int, int], **settings: Any) -> Any:
    outputs = SimpleNamespace(**{name: torch.from_numpy(array)[None] for name, array in raw.items()})
    (found,) = getattr(PROCESSORS[kind](), f"post_process_{what}_segmentation")(
        outputs, target_sizes=[size], **settings
    )
    return found


def rows(found: Any) -> list[tuple[float, int, bytes]]:
    return sorted((round(score, 4), label, mask.tobytes()) for label, score, mask in found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", FAMILIES)
def test_panoptic_segments_are_the_librarys(kind: str, size: tuple[int, int], seed: int) -> None:
    raw = answer_of(kind, seed)

    found = list(panoptic(raw, FAMILIES[kind], size, 0.4))

    expected = by_library(kind, raw, "panoptic", size, threshold=0.4, overlap_mask_area_threshold=OVERLAP)
    wanted = [
        (info["label_id"], info["score"], (expected["segmentation"] == info["id"]).numpy())
        for info in expected["segments_info"]
    ]
    assert len(wanted) >= 2
    assert rows(found) == rows(wanted)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_instances_are_the_librarys(kind: str, size: tuple[int, int], seed: int, threshold: float) -> None:
    raw = answer_of(kind, seed)

    found = list(instances(raw, FAMILIES[kind], size, threshold))

    expected = by_library(kind, raw, "instance", size, threshold=threshold, return_binary_maps=True)
    pairs = zip(expected["segments_info"], expected["segmentation"].bool().numpy(), strict=True)
    wanted = [(info["label_id"], info["score"], mask) for info, mask in pairs]
    assert len(wanted) >= 2
    assert rows(found) == rows(wanted)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_map_of_labels_is_the_librarys(kind: str, size: tuple[int, int]) -> None:
    raw = answer_of(kind, 4)

    found = semantic(raw, FAMILIES[kind], size)

    expected = by_library(kind, raw, "semantic", size).numpy()
    assert len(np.unique(expected)) >= 2
    # If two labels are equal to the last digit, either may win.
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize("shape", [(16, 20), (1, 9), (7, 1), (1, 1)])
@pytest.mark.parametrize("size", [(50, 70), (5, 6), (16, 20), (1, 1)])
def test_labels_that_are_passed_over_win_nowhere(shape: tuple[int, int], size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(5)
    # Some of the 60 labels are the largest somewhere, most are not.
    scores = torch.randn(60, *shape, generator=generator) + torch.linspace(-6, 3, 60)[:, None, None]

    found = semantic({"logits": scores.numpy()}, None, size)

    outputs = SimpleNamespace(logits=scores[None])
    (expected,) = SegformerImageProcessorPil().post_process_semantic_segmentation(
        outputs, target_sizes=[size]
    )
    assert (found == expected.numpy()).all()


def test_nothing_is_found_where_all_queries_say_nothing() -> None:
    raw = answer_of("detr", 0)
    raw["logits"][:, :-1] = -50

    assert list(panoptic(raw, FAMILIES["detr"], (40, 50), 0.0)) == []
    assert list(instances(raw, FAMILIES["detr"], (40, 50), 0.0)) == []


@pytest.mark.parametrize("cut", [panoptic, instances])
def test_an_answer_that_is_no_number_is_an_error_and_not_nothing(cut: Any) -> None:
    raw = answer_of("mask2former", 0)
    raw["class_queries_logits"][3, 2] = np.nan

    with pytest.raises(ModelmillError, match="values that are not numbers") as caught:
        list(cut(raw, FAMILIES["mask2former"], (40, 50), 0.5))
    assert caught.value.code is ErrorCode.INFERENCE_FAILED
