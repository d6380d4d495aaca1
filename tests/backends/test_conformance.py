"""Every built-in runner passes the checks for plugins, on the specimens in ``tests/fixtures/specimens``."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelmill.catalogue import ModelEntry
from modelmill.settings import Settings
from modelmill_backends.conformance import CHECKS, LoadedSpecimen, SkippedError, Specimen
from modelmill_backends.device import Device
from modelmill_backends.registry import all_runners, find_runner
from tests.fixtures.specimens import all_specimens
from tests.support.exhaustive import exhaustive

SPECIMENS = all_specimens()
LEFT_TO_MAKE_TEST_FULL = frozenset(
    (
        # Their runners have another specimen among the rest.
        *("tiny-whisper-times", "tiny-wav2vec2-layer", "tiny-wav2vec2-classifier-group"),
        *("image-embedding-clip-onnx", "image-embedding-siglip-transformers", "tiny-resnet"),
        *("image-text-embedding-siglip-transformers", "image-text-embedding-clip-onnx"),
        *("multimodal-embedding-clip-transformers", "multimodal-embedding-clip-onnx"),
        *("tiny-gpt2", "smollm2", "tiny-bart", "tiny-nllb", "tiny-vit-gpt2", "tiny-mobilenet-v2"),
        *("tiny-conditional-detr", "tiny-rt-detr", "tiny-owlvit", "tiny-vitpose-plus", "tiny-dpt"),
        *("tiny-maskformer", "tiny-detr-segmentation", "tiny-mask2former-semantic", "tiny-detr-semantic"),
        *("tiny-maskformer-segments", "tiny-detr-segments", "tiny-segformer-segments"),
        *("tiny-mask2former-instances", "tiny-sdxl", "tiny-encoder-onnx", "tiny-tapas-of-cells"),
        # They share weights and code with conse-images.
        *("conse-pairs", "conse-content"),
        # Read by test_ocr.py, and through the whole system by e2e/test_tasks.py.
        "rapidocr-printed",
    )
)
"""Specimens that take long, or whose runner another specimen proves. 53 runners have 96 specimens."""


def with_mark(specimen: Specimen) -> Any:
    name = f"{specimen.task}-{specimen.name}"
    left_out = specimen.name in LEFT_TO_MAKE_TEST_FULL
    return exhaustive(specimen, id=name) if left_out else pytest.param(specimen, id=name)


@pytest.fixture(scope="module")
def built() -> dict[str, ModelEntry]:
    """The entries of the built specimens, by the names of the specimens."""
    return {}


@pytest.fixture(scope="module", params=map(with_mark, SPECIMENS))
def loaded(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    settings: Settings,
    built: dict[str, ModelEntry],
) -> Iterator[LoadedSpecimen]:
    specimen: Specimen = request.param
    # One thread: more threads make such small models slower.
    loaded = LoadedSpecimen(specimen, tmp_path_factory.mktemp(specimen.name), settings, Device("cpu", 1))
    yield loaded
    built[specimen.name] = loaded.entry
    loaded.close()
    # The garbage collector then skips the objects of this specimen's libraries when the next one is closed.
    gc.freeze()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms(loaded: LoadedSpecimen, check: Callable[[LoadedSpecimen], None]) -> None:
    try:
        check(loaded)
    except SkippedError as reason:
        pytest.skip(str(reason))


def test_every_runner_has_a_specimen(
    built: dict[str, ModelEntry], tmp_path_factory: pytest.TempPathFactory
) -> None:
    without = {
        f"{backend} {task} {name}"
        for (backend, task, name), runner in all_runners().items()
        if runner.__module__.startswith("modelmill_backends.") and backend != "noop"
    }
    assert {specimen.name for specimen in SPECIMENS} >= LEFT_TO_MAKE_TEST_FULL
    for specimen in sorted(SPECIMENS, key=lambda specimen: specimen.name not in built):
        if not without:
            break
        entry = built.get(specimen.name) or specimen.build(tmp_path_factory.mktemp("entry"))
        runner = find_runner(entry.model_copy(update={"tasks": (specimen.task,)}), specimen.task)
        without.discard(f"{runner.backend} {runner.task} {runner.name}")
    assert not without
