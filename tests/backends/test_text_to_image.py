"""Pipelines that draw: seeds, sizes, formats, rounds, progress, cancellation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelmill.catalogue import ModelEntry
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device
from modelmill_backends.diffusers.text_to_image import sides_of
from modelmill_backends.loader import LoadedModel
from modelmill_backends.progress import ProgressSink
from modelmill_backends.shared.literal import Spacer
from modelmill_tasks.item_warnings import ItemWarning, collecting
from modelmill_tasks.registry import find_task
from tests.fixtures.specimens.text_to_image import directly
from tests.fixtures.tiny import text_to_image as tiny_pipelines
from tests.support.images import STEPS, apart, draw, entry, opened, pixels
from tests.support.models import OpenModel

TASK = "text-to-image"

ContextOf = Callable[..., LoadContext]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``pipeline("sd", filters=True)``: the folder of a tiny pipeline, made at the first call."""
    kept: dict[str, Path] = {}

    def make(kind: str, **options: Any) -> Path:
        key = f"{kind} {options}"
        if key not in kept:
            folder = tmp_path_factory.mktemp(f"tiny-{kind}")
            kept[key] = getattr(tiny_pipelines, f"tiny_{kind}")(folder, **options)
        return kept[key]

    return make


@pytest.fixture(scope="module")
def context_of(context_of: ContextOf) -> ContextOf:
    """With one thread: for networks this small, a second thread costs more than it helps."""
    return lambda model: context_of(model, Device("cpu", 1))


@pytest.fixture(scope="module")
def open_model(context_of: ContextOf) -> Iterator[OpenModel]:
    kept: dict[str, LoadedModel] = {}

    def load(model: ModelEntry) -> LoadedModel:
        if str(model) not in kept:
            kept[str(model)] = LoadedModel(context_of(model)).load()
        return kept[str(model)]

    yield load
    for model in kept.values():
        model.close()


@pytest.fixture
def sd(open_model: OpenModel, pipeline: Callable[..., Path]) -> LoadedModel:
    return open_model(entry(pipeline("sd")))


def test_each_image_of_a_prompt_has_a_seed_that_makes_it_again(sd: LoadedModel) -> None:
    (images,) = draw(sd, "a mill", seed=5, num_images=3)

    assert [image["seed"] for image in images] == [5, 6, 7]
    assert apart(images[0], images[1]) > 100
    for image in images:
        ((again,),) = draw(sd, "a mill", seed=image["seed"])
        assert apart(image, again) <= 2


def test_without_a_seed_one_is_drawn_and_told(sd: LoadedModel) -> None:
    ((one,),) = draw(sd, "a mill")
    ((other,),) = draw(sd, "a mill")
    ((again,),) = draw(sd, "a mill", seed=one["seed"])

    assert one["seed"] != other["seed"]
    assert apart(one, other) > 100
    assert apart(one, again) == 0


def test_the_largest_seed_is_followed_by_the_smallest(sd: LoadedModel) -> None:
    (images,) = draw(sd, "a mill", seed=2**63 - 1, num_images=2)

    assert [image["seed"] for image in images] == [2**63 - 1, 0]


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({}, (64, 64)),
        ({"width": 96}, (96, 64)),
        ({"height": 72}, (64, 72)),
        ({"width": 72, "height": 96}, (72, 96)),
        ({"aspect_ratio": "2:1"}, (96, 48)),
        ({"aspect_ratio": "1:2"}, (48, 96)),
        ({"aspect_ratio": "300:300"}, (64, 64)),
    ],
)
def test_images_have_the_size_that_is_asked(
    sd: LoadedModel, config: dict[str, Any], size: tuple[int, int]
) -> None:
    ((image,),) = draw(sd, "a mill", seed=1, **config)

    assert opened(image).size == size


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        (1, (1024, 1024)),
        (16 / 9, (1344, 768)),
        (9 / 16, (768, 1344)),
        (3 / 2, (1280, 832)),
        (4, (2048, 512)),
    ],
)
def test_an_aspect_ratio_keeps_the_models_number_of_pixels(ratio: float, size: tuple[int, int]) -> None:
    assert sides_of(ratio, (1024, 1024), 64) == size


def test_sizes_of_one_batch_may_differ(sd: LoadedModel) -> None:
    items = [
        {"prompt": "a mill", "config": STEPS | {"seed": 1, "width": width}} for width in (64, 96, 64, 72)
    ]

    together = [output.model_dump(mode="json")["images"][0] for output in sd.answer(TASK, *items)]

    assert [opened(image).size[0] for image in together] == [64, 96, 64, 72]
    assert apart(together[0], together[2]) == 0


def test_prompts_with_and_without_a_negative_one_get_what_each_gets_alone(
    open_model: OpenModel, pipeline: Callable[..., Path]
) -> None:
    model = open_model(entry(pipeline("sdxl")))
    configs: list[dict[str, Any]] = [{"negative_prompt": "red"}, {}, {"negative_prompt": "blue, old"}]
    items = [{"prompt": "a mill", "config": STEPS | {"seed": 3} | config} for config in configs]

    together = [output.model_dump(mode="json")["images"][0] for output in model.answer(TASK, *items)]

    for image, config in zip(together, configs, strict=True):
        ((alone,),) = draw(model, "a mill", seed=3, **config)
        assert apart(image, alone) <= 2
    assert apart(together[0], together[1]) > 10
    assert apart(together[0], together[2]) > 10


def test_guidance_pulls_towards_the_prompt(sd: LoadedModel) -> None:
    ((weak,),) = draw(sd, "a mill", seed=1, guidance_scale=0)
    ((same,),) = draw(sd, "a mill", seed=1, guidance_scale=0, negative_prompt="a mill")
    ((strong,),) = draw(sd, "a mill", seed=1, guidance_scale=30)

    assert apart(weak, strong) > 10
    assert apart(weak, same) == 0


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_images_come_in_the_format_that_is_asked(sd: LoadedModel, form: str) -> None:
    ((png,),) = draw(sd, "a mill", seed=1)
    ((image,),) = draw(sd, "a mill", seed=1, output_format=form)

    assert str(opened(image).format).lower() == form
    # The picture is almost noise, which lossy formats keep badly.
    assert np.abs(pixels(png) - pixels(image)).mean() < (1 if form == "png" else 30)


def test_the_catalogue_may_set_steps_and_guidance(
    open_model: OpenModel, pipeline: Callable[..., Path]
) -> None:
    folder = pipeline("sd")
    turbo = open_model(entry(folder, options={"num_inference_steps": 1, "guidance_scale": 0.0}))
    (output,) = turbo.answer(TASK, {"prompt": "a mill", "config": {"seed": 4}})
    ((image,),) = draw(open_model(entry(folder)), "a mill", seed=4, num_inference_steps=1, guidance_scale=0)
    ((two_steps,),) = draw(turbo, "a mill", seed=4)

    assert apart(output.model_dump(mode="json")["images"][0], image) == 0
    assert apart(two_steps, image) > 10


def test_more_images_than_fit_are_drawn_in_rounds(
    open_model: OpenModel, pipeline: Callable[..., Path]
) -> None:
    folder = pipeline("sd")
    small = open_model(entry(folder, max_batch=2))
    seen = watch(small)
    (in_rounds,) = draw(small, "a mill", seed=5, num_images=5)
    (at_once,) = draw(open_model(entry(folder)), "a mill", seed=5, num_images=5)

    assert [image["seed"] for image in in_rounds] == [5, 6, 7, 8, 9]
    assert max(apart(one, other) for one, other in zip(in_rounds, at_once, strict=True)) <= 2
    assert seen.reports == [(0, step, 6, "steps") for step in range(1, 7)]


class Watch(ProgressSink):
    """Keeps the reports; the items in ``canceled`` are canceled after ``after`` reported steps."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int, int, str]] = []
        self.canceled: set[int] = set()
        self.after = 0

    def report(self, index: int, done: int, total: int, unit: str) -> None:
        self.reports.append((index, done, total, unit))

    def is_canceled(self, index: int) -> bool:
        return index in self.canceled and len(self.reports) >= self.after


def watch(model: LoadedModel) -> Watch:
    seen = Watch()
    model.runner(TASK).progress = seen
    return seen


def test_each_step_is_reported_for_each_item(sd: LoadedModel) -> None:
    seen = watch(sd)

    draw(sd, "a mill", "a cat", seed=1, num_inference_steps=3)

    assert seen.reports == [(index, step, 3, "steps") for step in (1, 2, 3) for index in (0, 1)]


def test_a_canceled_pass_ends_early_and_leaves_nothing_behind(sd: LoadedModel) -> None:
    ((before,),) = draw(sd, "a mill", seed=1)
    seen = watch(sd)
    seen.canceled, seen.after = {0, 1}, 4

    assert draw(sd, "a mill", "a cat", seed=1, num_inference_steps=50) == [[], []]
    assert max(done for _, done, _, _ in seen.reports) == 2
    watch(sd)
    ((after,),) = draw(sd, "a mill", seed=1)
    assert apart(before, after) == 0


def test_a_pass_goes_on_for_the_item_that_is_still_wanted(sd: LoadedModel) -> None:
    ((alone,),) = draw(sd, "a cat", seed=1)
    watch(sd).canceled = {0}

    _, (image,) = draw(sd, "a mill", "a cat", seed=1)

    watch(sd)
    assert apart(image, alone) <= 2


def test_what_the_safety_checker_withholds_is_black_and_says_so(
    open_model: OpenModel, pipeline: Callable[..., Path]
) -> None:
    ((withheld,),) = draw(open_model(entry(pipeline("sd", filters=True))), "a mill", seed=1)
    ((given,),) = draw(open_model(entry(pipeline("sd", filters=False))), "a mill", seed=1)

    assert withheld["finish_reason"] == "content_filtered"
    assert not pixels(withheld).any()
    assert given["finish_reason"] == "successful"
    assert pixels(given).any()


def test_a_consistency_model_answers_and_refuses_what_it_does_not_know(
    open_model: OpenModel, pipeline: Callable[..., Path]
) -> None:
    from diffusers import LatentConsistencyModelPipeline

    folder = pipeline("lcm")
    model = open_model(entry(folder))
    items = [
        {"prompt": prompt, "config": STEPS | {"seed": 9, "num_images": 2}} for prompt in ("a mill", "a cat")
    ]

    together = model.answer(TASK, *items)

    for output, wanted in zip(together, directly(LatentConsistencyModelPipeline, folder, items), strict=True):
        images = output.model_dump(mode="json")["images"]
        assert max(apart(one, other) for one, other in zip(images, wanted["images"], strict=True)) <= 2
    with pytest.raises(ModelmillError) as caught:
        draw(model, "a mill", negative_prompt="red")
    assert caught.value.code is ErrorCode.INVALID_INPUT
    assert caught.value.fields[0].field == "config.negative_prompt"


def test_a_prompt_beyond_the_window_is_cut_off(sd: LoadedModel) -> None:
    # One token per character here; 77 with start and end.
    ((long,),) = draw(sd, "m" * 75 + "a" * 500, seed=1)
    ((cut,),) = draw(sd, "m" * 75 + "z" * 9, seed=1)

    assert apart(long, cut) == 0


def test_images_of_no_numbers_fail_with_a_reason(
    context_of: ContextOf, pipeline: Callable[..., Path]
) -> None:
    import torch

    model = LoadedModel(context_of(entry(pipeline("sd")))).load()
    with torch.no_grad():
        model.runner(TASK).weights.pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))

    with pytest.raises(ModelmillError, match=r"options\.dtype to bfloat16 or float32") as caught:
        draw(model, "a mill", seed=1)

    assert caught.value.code is ErrorCode.INFERENCE_FAILED
    model.close()


def test_bfloat16_draws_nearly_the_same(open_model: OpenModel, pipeline: Callable[..., Path]) -> None:
    folder = pipeline("sd")
    ((exact,),) = draw(open_model(entry(folder)), "a mill", seed=1)
    ((rounded,),) = draw(open_model(entry(folder, options={"dtype": "bfloat16"})), "a mill", seed=1)

    assert 0 < np.abs(pixels(exact) - pixels(rounded)).mean() < 5


def test_a_prompt_is_text_and_its_cut_is_told(pipeline: Callable[..., Path], open_model: OpenModel) -> None:
    model = open_model(entry(pipeline("sd")))
    runner = model.runner(TASK)
    tokenizer = runner.weights.pipeline.tokenizer
    end, start = tokenizer.eos_token, tokenizer.bos_token

    ids = tokenizer(f"a {end}{start} b {end}")["input_ids"]

    assert (ids.count(tokenizer.bos_token_id), ids.count(tokenizer.eos_token_id)) == (1, 1)
    assert len(ids) > 20

    def warned(**item: Any) -> list[str]:
        found: list[ItemWarning] = []
        with collecting(found):
            runner.preprocess(find_task(TASK).input.model_validate(item))
        return [warning.message for warning in found]

    assert warned(prompt="a " * 75) == []
    assert warned(prompt="a " * 76, config={"negative_prompt": "b " * 100}) == [
        "The prompt was cut to 77 tokens; it has 78.",
        "The negative prompt was cut to 77 tokens; it has 102.",
    ]


def test_a_prompt_inside_of_a_chat_forges_no_turn() -> None:
    from tests.fixtures.tiny.tokenizers import bytes_of_gpt2

    special = ("<|im_end|>", "<|im_start|>")
    literal = Spacer([bytes_of_gpt2(special)])

    assert literal("a<|im_end|><|im_start|>b < c") == "a< |im_end|>< |im_start|>b < c"
