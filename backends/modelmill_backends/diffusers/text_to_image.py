"""Text to image by any pipeline of ``AutoPipelineForText2Image``."""

from __future__ import annotations

import inspect
import io
import math
import secrets
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from modelmill.errors import ErrorCode, ModelmillError, invalid_field
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.diffusers.pipelines import Loaded, load_pipeline
from modelmill_backends.shared.losses import warn_cut
from modelmill_tasks.shared.generation import MAX_SEED
from modelmill_tasks.text_to_image import MAX_SIDE, Config, Finish, GeneratedImage, Input, Output

DEFAULT_SIDE = 1024
"""Pixels of a side, for a pipeline that does not state its image size."""
STEERING = ("negative_prompt", "num_inference_steps", "guidance_scale")
"""Parameters that not every pipeline takes."""
QUALITY = {"jpeg": 95, "webp": 90}
"""On Pillow's scale, which ends at 100."""


class _AllCanceledError(Exception):
    """All items of the batch were canceled."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The images to draw for one item: a size in pixels, and one seed per image."""

    width: int
    height: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One image as it comes from the device."""

    pixels: Any
    """``[height, width, 3]``, bytes."""
    is_finite: bool
    is_withheld: bool


class TextToImageRunner(Runner[Input, Loaded]):
    """Draws the images of all items in one pass.

    Each image has its own noise generator on the CPU. So its seed gives the same image in any batch and on
    any device.

    ``Prepared.cost`` counts images of the model's own size.
    """

    backend = "diffusers"
    task = "text-to-image"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._parameters = inspect.signature(weights.pipeline.__call__).parameters
        self._native = native_size(weights.pipeline)
        self._capacity = context.entry.max_batch or context.settings.max_batch

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        return load_pipeline(context, "AutoPipelineForText2Image")

    def group_key(self, item: Input) -> Hashable:
        # Some models treat an empty negative prompt differently from an absent one.
        negative = item.config.negative_prompt is not None
        return (*self._size(item.config), *self._steering(item.config), negative)

    def preprocess(self, item: Input) -> Prepared[Input]:
        config = item.config
        width, height = self._size(config)
        self._check_size(config, width, height)
        for name in STEERING:
            if getattr(config, name) is not None and name not in self._parameters:
                raise invalid_field(f"config.{name}", "this model has no such setting; leave it out")
        self._warn_of_cut("prompt", item.prompt)
        self._warn_of_cut("negative prompt", config.negative_prompt or "")
        # Every JSON parser keeps 32 bits exactly.
        first = secrets.randbits(32) if config.seed is None else config.seed
        seeds = tuple((first + index) % (MAX_SEED + 1) for index in range(config.num_images))
        cost = len(seeds) * width * height / math.prod(self._native)
        return Prepared(item, Plan(width, height, seeds), cost)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[list[Drawn]]:
        wanted = [(index, seed) for index, prepared in enumerate(batch) for seed in prepared.data.seeds]
        plan: Plan = batch[0].data
        # A single item may ask for more images than fit into a pass.
        at_once = max(1, int(self._capacity * math.prod(self._native) / (plan.width * plan.height)))
        rounds = [wanted[start : start + at_once] for start in range(0, len(wanted), at_once)]
        drawn: list[list[Drawn]] = [[] for _ in batch]
        for number, members in enumerate(rounds):
            if self._all_canceled(batch):
                break
            with suppress(_AllCanceledError):
                images = self._draw(batch, members, number, len(rounds))
                for (index, _), image in zip(members, images, strict=True):
                    drawn[index].append(image)
        return drawn

    def postprocess(self, prepared: Prepared[Input], raw: list[Drawn]) -> Output:
        if not all(image.is_finite for image in raw):
            raise ModelmillError(
                ErrorCode.INFERENCE_FAILED,
                "The image holds values that are not numbers: the weights' type is too small for this model. "
                "Set its options.dtype to bfloat16 or float32.",
            )
        form = prepared.item.config.output_format
        return Output(
            created=int(time.time()),
            images=[
                GeneratedImage(
                    image=_data_url(image.pixels, form),
                    seed=seed,
                    finish_reason=Finish.CONTENT_FILTERED if image.is_withheld else Finish.SUCCESSFUL,
                )
                for image, seed in zip(raw, prepared.data.seeds, strict=False)
            ],
        )

    def _draw(
        self, batch: Sequence[Prepared[Input]], members: Sequence[tuple[int, int]], number: int, rounds: int
    ) -> list[Drawn]:
        """Round ``number`` of ``rounds``: the images of ``members``, which are (place in the batch, seed)."""
        import torch

        def after_step(
            pipeline: Any, step: int, _timestep: Any, _tensors: Mapping[str, Any]
        ) -> dict[str, Any]:
            steps = getattr(pipeline, "num_timesteps", None) or step + 1
            for index in range(len(batch)):
                self.progress.report(index, number * steps + step + 1, rounds * steps, "steps")
            if self._all_canceled(batch):
                # Not every pipeline has the library's flag for this, and those that have it still decode.
                raise _AllCanceledError
            return {}

        items = [batch[index].item for index, _ in members]
        plan: Plan = batch[0].data
        steps, guidance = self._steering(items[0].config)
        arguments: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "callback_on_step_end": after_step,
            "callback_on_step_end_tensor_inputs": [],
        }
        if items[0].config.negative_prompt is not None:
            arguments["negative_prompt"] = [
                self.weights.literal(item.config.negative_prompt or "") for item in items
            ]
        found = self.weights.pipeline(
            prompt=[self.weights.literal(item.prompt) for item in items],
            width=plan.width,
            height=plan.height,
            generator=[torch.Generator().manual_seed(seed) for _, seed in members],
            output_type="pt",
            **{
                name: value
                for name, value in arguments.items()
                if value is not None and name in self._parameters
            },
        )
        return _as_drawn(found)

    def _warn_of_cut(self, what: str, text: str) -> None:
        """Warns the caller of a prompt that no text encoder reads to its end."""
        limits = [(self._window(tokenizer), tokenizer) for tokenizer in self.weights.tokenizers]
        if text and limits:
            window, tokenizer = max(limits, key=itemgetter(0))
            with self.weights.tokenizing:
                tokens = len(tokenizer(self.weights.literal(text), verbose=False)["input_ids"])
            warn_cut(what, min(tokens, window), tokens)

    def _window(self, tokenizer: Any) -> int:
        """Number of tokens of a prompt that the pipeline gives to the tokenizer's encoder."""
        longest = self._parameters.get("max_sequence_length")
        if longest is not None and not type(tokenizer).__name__.startswith("CLIP"):
            return int(longest.default)
        return int(tokenizer.model_max_length)

    def _all_canceled(self, batch: Sequence[Prepared[Input]]) -> bool:
        return all(self.progress.is_canceled(index) for index in range(len(batch)))

    def _steering(self, config: Config) -> tuple[int | None, float | None]:
        """Steps and guidance; None means the pipeline's own default."""
        options = self.weights.options
        steps = config.num_inference_steps or options.num_inference_steps
        guidance = options.guidance_scale if config.guidance_scale is None else config.guidance_scale
        return steps, guidance

    def _size(self, config: Config) -> tuple[int, int]:
        """Width and height in pixels."""
        if config.aspect_ratio is not None:
            width, height = (int(side) for side in config.aspect_ratio.split(":"))
            return sides_of(width / height, self._native, 8 * self._unit)
        return config.width or self._native[0], config.height or self._native[1]

    @property
    def _unit(self) -> int:
        """Pixels of the image, along one side, for one pixel of the latent image."""
        return int(getattr(self.weights.pipeline, "vae_scale_factor", 8))

    def _check_size(self, config: Config, width: int, height: int) -> None:
        # Transformers read latent images in patches of 2 by 2.
        unit = self._unit * (2 if getattr(self.weights.pipeline, "transformer", None) is not None else 1)
        for name, side in (("width", width), ("height", height)):
            if getattr(config, name) is not None and side % unit:
                raise invalid_field(f"config.{name}", f"must be a multiple of {unit} for this model")


def native_size(pipeline: Any) -> tuple[int, int]:
    """Width and height of the images that the model was made for, in pixels."""
    network: Any = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    sample = getattr(pipeline, "default_sample_size", None) or getattr(network.config, "sample_size", None)
    if not sample:
        return DEFAULT_SIDE, DEFAULT_SIDE
    height, width = sample if isinstance(sample, list | tuple) else (sample, sample)
    unit = int(getattr(pipeline, "vae_scale_factor", 8))
    return width * unit, height * unit


def sides_of(ratio: float, native: tuple[int, int], unit: int) -> tuple[int, int]:
    """Width and height with this ratio, in multiples of ``unit``, with about as many pixels as ``native``."""
    height = math.sqrt(math.prod(native) / ratio)
    largest = MAX_SIDE // unit * unit
    width, height = (min(largest, max(unit, round(side / unit) * unit)) for side in (height * ratio, height))
    return width, height


def _as_drawn(found: Any) -> list[Drawn]:
    """The images ``[n, 3, height, width]`` of a pipeline's answer, 0 to 1, as bytes 0 to 255."""
    import torch

    images = found.images.detach().float()
    finite = images.isfinite().flatten(1).all(1).tolist()
    # diffusers itself converts numbers to pixels in this way.
    pixels = (images.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    withheld = getattr(found, "nsfw_content_detected", None) or [False] * len(pixels)
    return [Drawn(*parts) for parts in zip(pixels, finite, map(bool, withheld), strict=True)]


def _data_url(pixels: Any, form: str) -> str:
    import pybase64
    from PIL import Image

    buffer = io.BytesIO()
    quality = {"quality": QUALITY[form]} if form in QUALITY else {}
    Image.fromarray(pixels).save(buffer, form.upper(), **quality)
    return f"data:image/{form};base64,{pybase64.b64encode(buffer.getvalue()).decode()}"
